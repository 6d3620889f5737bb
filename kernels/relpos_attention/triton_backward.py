"""The gradients of relpos_attention, with the weights and the scores' gradients in memory for some heads at a time.

With p the weights, do the output's gradient and delta[i] = sum_j p[i, j] do[i] . v[j], the gradient of a score before
its scale is

    ds[i, j] = p[i, j] (do[i] . v[j] - delta[i]),

and from p and ds follow, each by products over one of their axes, with the diagonals of ds as rows of r,

    dv[j] = sum_i p[i, j] do[i]
    dk[j] = scale sum_i ds[i, j] (q[i] + bias_u)
    dr[m] = scale sum_bi ds[i, j] (q[i] + bias_v),  j = i + m - (frames - 1)
    dq[i] = scale sum_j ds[i, j] (k[j] + r[frames - 1 - i + j]).

The gradients of the biases are the sums of the two terms of dq. Nothing is added up by atomics: a program owns its rows
of a gradient, and those of r, to which all rows of the batch add, are carried from one group of heads to the next.

The first kernel walks along the keys as the forward does, once for the rows' sums and once for p and ds, which it
writes in the inputs' dtype, as tensor cores take them. Delta is summed up like the normaliser, and not taken from the
output: a weight of 1 then has the gradient 0. The other kernels read p and ds as they come, transposed, or along the
diagonals, where the address does the relative shift.

Why p and ds reach memory: call a product of a T x T matrix with a head's rows, of which the forward has 3, one product.
There are 11 of them here, 3 for each walk and 5 for the gradients. Kernels that keep p and ds to themselves compute the
scores once more for dk and dv, and once more for dr, and these by bands: 64 keys and 64 queries take 128 rows of r, 64
rows of r and as many queries 128 keys. With the output kept for delta they have 5 products for dq, 6 for dk and dv and
6 for dr. The 6 more, at the forward's rate, are 200 us for 32 rows of 438 frames with 8 heads of 160 in bfloat16, where
p and ds have 0.2 GB; written once and read five times in all they move 0.7 GB, 160 us at the 4.3 TB/s an H200 copies
at if no cache helped, and half the products wait for that anyway. To add up dr by atomics where dq is computed would
spare 5 products, for 0.6 GB of float32 additions in no fixed order.

Arithmetic, not measurement: in that case the first kernel takes twice the forward's 100 us, the others 160 us, bound by
memory. The reference run again and PyTorch's backward of it take 850 us at least.

Memory is bounded: a group is as many heads of rows of the batch as WORKSPACE has room for, one at least.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastspeech.kernels.launch import on_device_of, unit
from fastspeech.kernels.relpos_attention.triton import (
    LOG2E,
    _add_product,
    _first_blocks,
    _lanes,
    _scores,
    _zeros,
    bias_scores,
    tile_of,
    widths,
)

WORKSPACE = 256 * 1024 * 1024
"""Bytes for p and ds: those of a batch of 35 s clips in bfloat16, so that its launches fill the GPU."""


@triton.jit
def _length(lengths, b, frames):
    """The valid frames of row b."""
    length = frames
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + b), frames).to(tl.int32)
    return length


@triton.jit(
    do_not_specialize=[
        *("q_batch", "q_head", "k_batch", "k_head", "v_batch", "v_head", "r_head"),
        *("frames", "width", "first", "zero"),
    ]
)
def _weights_and_slopes(
    q,
    k,
    v,
    r,
    content,
    position,
    lengths,
    dout,
    weights,
    slopes,
    scale,
    q_batch,
    q_head,
    k_batch,
    k_head,
    v_batch,
    v_head,
    r_head,
    frames,
    width,
    first,
    zero,
    Q_STRIDE: tl.constexpr,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    R_STRIDE: tl.constexpr,
    UNIT: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTHS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """p and ds of a tile of M queries of one head, with the keys up to the length rounded up to BLOCK.

    A row of p or ds has width * BLOCK columns. Rows behind the length hold anything. `zero` is as in the forward.
    """
    tl.static_assert(M == 2 * N)
    tiles = tl.cdiv(frames, M)
    start = tl.program_id(0) % tiles * M
    here = (tl.program_id(0) // tiles).to(tl.int64)
    head = (first + here) % HEADS
    b = (first + here) // HEADS
    length = _length(lengths, b, frames)
    length = tl.where(start < length, length, 0)

    q += (b * q_batch + head * q_head) * UNIT
    k += (b * k_batch + head * k_head) * UNIT
    v += (b * v_batch + head * v_head) * UNIT
    r += head * r_head * UNIT + (frames - 1).to(tl.int64) * R_STRIDE
    content += (b * HEADS + head) * (width * BLOCK)
    position += head * (2 * frames - 1) + frames - 1
    dout += (b * frames * HEADS + head) * DIM

    a = tl.arange(0, M)
    rows = tl.minimum(start + a, frames - 1).to(tl.int64)[:, None]
    own = rows * Q_STRIDE
    theirs = rows * (HEADS * DIM)
    held = ()
    grads = ()
    for part in tl.static_range(len(WIDTHS)):
        d = _lanes(part, WIDTHS)[None, :]
        if CHUNK == 0:
            held += (tl.load(q + d + own, mask=d < DIM, other=0.0),)
            grads += (tl.load(dout + d + theirs, mask=d < DIM, other=0.0),)

    highest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    delta = tl.zeros((M,), tl.float32)
    left, last = _first_blocks(held, q, own, r, position, start, frames - 1, R_STRIDE, DIM, WIDTHS, CHUNK, M, N)
    for j in range(zero, length, N):
        s, keys, left, last = _scores(
            *(held, q, own, k, r, content, position, scale, start, j, length, frames - 1, left, last),
            *(K_STRIDE, R_STRIDE, DIM, WIDTHS, CHUNK, M, N),
        )
        top = tl.maximum(highest, tl.max(s, 1))
        fade = tl.exp2(highest - top)
        p = tl.exp2(s - top[:, None])
        total = total * fade + tl.sum(p, 1)
        slope = _add_product(_zeros(M, N), grads, dout, theirs, v, keys * V_STRIDE, DIM, WIDTHS, CHUNK)
        delta = delta * fade + tl.sum(p * slope, 1)
        highest = top
    norm = 1.0 / tl.where(total == 0, 1.0, total)
    delta *= norm

    strip = (here * frames + start + a)[:, None] * (width * BLOCK) + tl.arange(0, N)[None, :]
    inside = (start + a < frames)[:, None]
    left, last = _first_blocks(held, q, own, r, position, start, frames - 1, R_STRIDE, DIM, WIDTHS, CHUNK, M, N)
    for j in range(zero, tl.cdiv(length, BLOCK) * BLOCK, N):
        s, keys, left, last = _scores(
            *(held, q, own, k, r, content, position, scale, start, j, length, frames - 1, left, last),
            *(K_STRIDE, R_STRIDE, DIM, WIDTHS, CHUNK, M, N),
        )
        p = tl.exp2(s - highest[:, None]) * norm[:, None]
        tl.store(weights + strip + j, p.to(weights.dtype.element_ty), mask=inside)
        slope = _add_product(_zeros(M, N), grads, dout, theirs, v, keys * V_STRIDE, DIM, WIDTHS, CHUNK)
        slope = p * (slope - delta[:, None])
        tl.store(slopes + strip + j, slope.to(slopes.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["x_batch", "x_head", "frames", "width", "first", "pairs"])
def _down(
    strips,
    x,
    bias,
    lengths,
    out,
    scale,
    x_batch,
    x_head,
    frames,
    width,
    first,
    pairs,
    X_STRIDE: tl.constexpr,
    UNIT: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTHS: tl.constexpr,
    DIAGONAL: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """scale times the sum over the queries i of strips[i, j] (x[i] + bias), for M keys j of one head of one row; or for
    M diagonals of one head, over all rows whose strips are here, added to what `out` holds.

    Columns behind the length hold anything, and add to nothing but the sums of these keys, which are 0.
    """
    blocks = tl.cdiv(tl.where(DIAGONAL, 2 * frames - 1, frames), M)
    block = tl.program_id(0) % blocks * M
    own = block + tl.arange(0, M)
    n = tl.arange(0, N)
    pair = (first + tl.program_id(0) // blocks).to(tl.int64)
    end = pair + 1
    if DIAGONAL:
        # The first of this head whose strips are here.
        pair = first + (tl.program_id(0) // blocks + HEADS - first % HEADS).to(tl.int64) % HEADS
        end = (first + pairs).to(tl.int64)
    head = pair % HEADS
    b = pair // HEADS

    sums = ()
    for part in tl.static_range(len(WIDTHS)):
        sums += (_zeros(M, WIDTHS[part]),)
    count = tl.zeros((M,), tl.float32)
    for at in range(pair, end, HEADS):
        length = _length(lengths, at // HEADS, frames)
        strip = strips + (at - first) * frames * (width * M)
        values = x + (at // HEADS * x_batch + head * x_head) * UNIT
        low = 0
        high = length
        if DIAGONAL:
            low = tl.maximum(frames - M - block, 0)
            high = tl.minimum(length, length + frames - 1 - block)
        for i in range(low, high, N):
            queries = (i + n)[:, None]
            inside = queries < length
            keys = tl.broadcast_to(own[None, :], (N, M))
            if DIAGONAL:
                keys += queries - (frames - 1)
                shared = tl.load(
                    strip + queries.to(tl.int64) * (width * M) + keys,
                    mask=inside & (keys >= 0) & (keys < length),
                    other=0.0,
                )
            else:
                shared = tl.load(strip + queries.to(tl.int64) * (width * M) + keys, mask=inside, other=0.0)
            if bias is not None:
                count += tl.sum(shared.to(tl.float32), 0)
            turned = tl.trans(shared)
            added = ()
            for part in tl.static_range(len(WIDTHS)):
                d = _lanes(part, WIDTHS)[None, :]
                value = tl.load(values + queries.to(tl.int64) * X_STRIDE + d, mask=inside & (d < DIM), other=0.0)
                added += (tl.dot(turned, value, sums[part], input_precision="ieee"),)
            sums = added

    if DIAGONAL:
        valid = own < 2 * frames - 1
        kept = valid
        out += head * DIM
    else:
        valid = own < frames
        kept = own < _length(lengths, b, frames)
        out += (b * frames * HEADS + head) * DIM
    count = tl.where(kept, count, 0.0)
    rows = own.to(tl.int64)[:, None] * (HEADS * DIM)
    for part in tl.static_range(len(WIDTHS)):
        d = _lanes(part, WIDTHS)[None, :]
        grad = tl.where(kept[:, None], sums[part], 0.0)
        if bias is not None:
            weight = tl.load(bias + head * DIM + d, mask=d < DIM, other=0.0).to(tl.float32)
            grad += count[:, None] * weight
        grad *= scale
        inside = valid[:, None] & (d < DIM)
        if DIAGONAL:
            grad += tl.load(out + rows + d, mask=inside, other=0.0)
        tl.store(out + rows + d, grad.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["k_batch", "k_head", "r_head", "frames", "width", "first"])
def _across(
    slopes,
    k,
    r,
    lengths,
    dq,
    totals,
    scale,
    k_batch,
    k_head,
    r_head,
    frames,
    width,
    first,
    K_STRIDE: tl.constexpr,
    R_STRIDE: tl.constexpr,
    UNIT: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDTHS: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """The gradients of M queries of one head, and the sums over them, unscaled, by way of r and in all."""
    tiles = tl.cdiv(frames, M)
    start = tl.program_id(0) % tiles * M
    here = (tl.program_id(0) // tiles).to(tl.int64)
    head = (first + here) % HEADS
    b = (first + here) // HEADS
    length = _length(lengths, b, frames)
    length = tl.where(start < length, length, 0)

    k += (b * k_batch + head * k_head) * UNIT
    r += head * r_head * UNIT
    rows = (start + tl.arange(0, M))[:, None]
    n = tl.arange(0, N)
    strip = slopes + here * frames * (width * M) + rows.to(tl.int64) * (width * M)
    totals += (first + here) * tiles * (2 * DIM) + tl.program_id(0) % tiles * (2 * DIM)

    sums = ()
    for part in tl.static_range(len(WIDTHS)):
        sums += (_zeros(M, WIDTHS[part]),)
    for m in range(frames - M - start, frames - 1 - start + length, N):
        places = m + n
        keys = rows - (frames - 1) + places[None, :]
        slope = tl.load(strip + keys, mask=(rows < length) & (keys >= 0) & (keys < length), other=0.0)
        known = ((places >= 0) & (places < 2 * frames - 1))[:, None]
        added = ()
        for part in tl.static_range(len(WIDTHS)):
            d = _lanes(part, WIDTHS)[None, :]
            value = tl.load(r + places.to(tl.int64)[:, None] * R_STRIDE + d, mask=known & (d < DIM), other=0.0)
            added += (tl.dot(slope, value, sums[part], input_precision="ieee"),)
        sums = added
    for part in tl.static_range(len(WIDTHS)):
        lanes = _lanes(part, WIDTHS)
        tl.store(totals + lanes, tl.sum(sums[part], 0), mask=lanes < DIM)
    for j in range(0, length, N):
        keys = j + n
        # Columns up to the length rounded up to M are written.
        slope = tl.load(strip + keys[None, :], mask=rows < length, other=0.0)
        known = (keys < length)[:, None]
        added = ()
        for part in tl.static_range(len(WIDTHS)):
            d = _lanes(part, WIDTHS)[None, :]
            value = tl.load(k + keys.to(tl.int64)[:, None] * K_STRIDE + d, mask=known & (d < DIM), other=0.0)
            added += (tl.dot(slope, value, sums[part], input_precision="ieee"),)
        sums = added
    for part in tl.static_range(len(WIDTHS)):
        lanes = _lanes(part, WIDTHS)
        tl.store(totals + DIM + lanes, tl.sum(sums[part], 0), mask=lanes < DIM)
        at = ((b * frames + rows) * HEADS + head) * DIM + lanes[None, :]
        known = (rows < frames) & (lanes < DIM)[None, :]
        tl.store(dq + at, (sums[part] * scale).to(dq.dtype.element_ty), mask=known)


def _tile(q: Tensor) -> tuple[int, int, int, int, int]:
    """Of the first kernel: queries and keys of a tile, components that come at a time (0: held), warps, stages."""
    m, n, chunk = tile_of(q)
    if not chunk and q.is_cuda:
        capability = torch.cuda.get_device_capability(q.device)
        if capability < (9, 0):
            # Both operands of a product lie in registers there: two held ones leave room for half a tile.
            return 32, 16, 0, 2, 2
        if capability >= (10, 0):
            return m, n, 0, 4, 1
    return m, n, chunk, 4, 2


def launch(
    grads: list[Tensor | None],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    bias_u: Tensor,
    bias_v: Tensor,
    lengths: Tensor | None,
    scale: float,
    needs: list[bool],
) -> list[Tensor]:
    batch, frames, heads, dim = q.shape
    (dout,) = grads
    assert dout is not None
    dout = dout.contiguous()
    q, k, v, r = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v, r))
    lengths = None if lengths is None else lengths.contiguous()
    bias_u, bias_v = bias_u.contiguous(), bias_v.contiguous()
    m, n, chunk, warps, stages = _tile(q)
    # Along a diagonal each element has an address of its own: fewer of them at a time.
    block, step, diagonal, ahead = (32, 16, 16, 1) if chunk else (64, 32, 16, 3)
    # All registers: left to itself the assembler spills a few to fit more programs on an SM.
    options = {"num_warps": 4, "num_stages": ahead, "maxnreg": 255}
    tiles = triton.cdiv(frames, block)
    pairs = batch * heads
    room = max(WORKSPACE // (2 * frames * tiles * block * q.element_size()), 1)
    group = triton.cdiv(pairs, triton.cdiv(pairs, room))
    strips = q.new_empty(2, group, frames, tiles * block)
    weights, slopes = strips.unbind(0)
    dq, dk, dv = (q.new_empty(q.shape) if need else None for need in (needs[0] or any(needs[4:6]), *needs[1:3]))
    dr = q.new_zeros(r.shape, dtype=torch.float32) if needs[3] else None
    totals = q.new_empty(batch, heads, tiles, 2, dim, dtype=torch.float32) if dq is not None else None

    u = unit(q, k, v, r)
    shared = {"HEADS": heads, "DIM": dim, "WIDTHS": widths(dim)}
    by_unit = {name: (t.stride(0) // u, t.stride(2) // u) for name, t in (("q", q), ("k", k), ("v", v))}
    r_head = r.stride(1) // u
    with on_device_of(q):
        content, position = bias_scores(k, r, bias_u, bias_v, lengths, scale, block, u)
        for first in range(0, pairs, group):
            here = min(group, pairs - first)
            _weights_and_slopes[(triton.cdiv(frames, m) * here,)](
                *(q, k, v, r, content, position, lengths, dout, weights, slopes, scale * LOG2E),
                *(*by_unit["q"], *by_unit["k"], *by_unit["v"], r_head, frames, tiles, first, 0),
                Q_STRIDE=q.stride(1),
                K_STRIDE=k.stride(1),
                V_STRIDE=v.stride(1),
                R_STRIDE=r.stride(0),
                UNIT=u,
                CHUNK=chunk,
                BLOCK=block,
                M=m,
                N=n,
                num_warps=warps,
                num_stages=stages,
                **shared,
            )
            for strip, x, bias, grad, factor in (
                (weights, dout, None, dv, 1.0),
                (slopes, q, bias_u, dk, scale),
                (slopes, q, bias_v, dr, scale),
            ):
                if grad is not None:
                    x_unit = unit(x)
                    _down[(triton.cdiv(2 * frames - 1, block) * heads if grad is dr else tiles * here,)](
                        *(strip, x, bias, lengths, grad, factor, x.stride(0) // x_unit, x.stride(2) // x_unit),
                        *(frames, tiles, first, here),
                        X_STRIDE=x.stride(1),
                        UNIT=x_unit,
                        DIAGONAL=grad is dr,
                        M=block,
                        N=diagonal if grad is dr else step,
                        **options,
                        **shared,
                    )
            if dq is not None:
                _across[(tiles * here,)](
                    *(slopes, k, r, lengths, dq, totals, scale, *by_unit["k"], r_head, frames, tiles, first),
                    K_STRIDE=k.stride(1),
                    R_STRIDE=r.stride(0),
                    UNIT=u,
                    M=block,
                    N=diagonal,
                    **options,
                    **shared,
                )
    found = [grad for grad, need in zip((dq, dk, dv), needs, strict=False) if need and grad is not None]
    if dr is not None:
        found.append(dr.to(r.dtype))
    if totals is not None:
        by_place, both = (scale * totals.sum((0, 2))).unbind(1)
        if needs[4]:
            found.append((both - by_place).to(bias_u.dtype))
        if needs[5]:
            found.append(by_place.to(bias_v.dtype, memory_format=torch.contiguous_format, copy=True))
    return found
