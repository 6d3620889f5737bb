"""The gradients of rope_attention in two passes over the scores, which are computed again tile by tile.

Let q and k be rotated, s = scale q k', p = softmax(s) and dp = dout v'. With delta = rowsum(p * dp), which is
rowsum(dout * out) (Dao, FlashAttention-2, 2023),

    ds = p * (dp - delta),  dq = scale ds k,  dk = scale ds' q,  dv = p' dout.

The output is at hand, so that delta is known before the first score, and the pass over the queries is an online softmax
like the forward's: exp(s - running maximum) * (dp - delta) is summed up and divided by the total at the end. It leaves
delta and the logarithm of each row's sum to the pass over the keys; the forward need save nothing but its output. No
sum is shared between programs: a tile of queries with all heads of one key head is one program's, and so is a tile of
keys, which walks along the queries of all these heads. Tiles in which no query sees a key are not visited.

Every tile is read many times, so q and k are rotated ahead, as the forward rotates its keys, and the gradients are
turned back behind: a small kernel reads each pair and its position again. The gradient of the frequencies falls off
there: that of an angle is the cross product of x and dx, to be multiplied by the position.

Three products a score in the pass over the queries and four in that over the keys are 14 head_dim operations, where the
forward has 4. By arithmetic, and not by measurement, 32 rows of 30 s with 8 heads of 36 in bfloat16 are 270 GFLOP (held
in 48 components), 0.33 ms at 800 TFLOP/s; what comes between the products, some 16 instructions a score, takes 0.22 ms
of an H200's other units, and the 0.5 GB that are moved 0.12 ms.

Registers suffice for the heads of the four models; in float32 heads of more than 64 spill a few.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastspeech.kernels.launch import on_device_of, unit
from fastspeech.kernels.rope_attention.triton import (
    FEW,
    HEADS,
    ROWS,
    _by_row,
    _lanes,
    _position,
    _widths,
    frequencies,
    rotated,
)
from fastspeech.kernels.rotation import partner, turns

DYNAMIC = ["q_batch", "q_head", "k_batch", "k_head", "v_batch", "v_head", "queries", "keys"]


@triton.jit(do_not_specialize=DYNAMIC)
def _query_gradients(
    q,
    k,
    v,
    lengths,
    out,
    dout,
    dq,
    norms,
    deltas,
    scale,
    q_batch,
    q_head,
    k_batch,
    k_head,
    v_batch,
    v_head,
    queries,
    keys,
    Q_STRIDE: tl.constexpr,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    Q_UNIT: tl.constexpr,
    K_UNIT: tl.constexpr,
    V_UNIT: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    QK_DIM: tl.constexpr,
    WIDTHS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """dq of a tile of M rows, as the forward lays them out, and what the pass over the keys needs to know of them."""
    tiles = tl.cdiv(queries * GROUP, M)
    start = (tiles - 1 - tl.program_id(0) % tiles) * M
    kv_head = tl.program_id(0) // tiles % KV_HEADS
    b = (tl.program_id(0) // tiles // KV_HEADS).to(tl.int64)
    row = start + tl.arange(0, M)[:, None]
    query = row // GROUP
    inside = query < queries
    length = keys
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + b), keys).to(tl.int32)

    q += (b * q_batch + kv_head.to(tl.int64) * GROUP * q_head) * Q_UNIT
    k += (b * k_batch + kv_head.to(tl.int64) * k_head) * K_UNIT
    v += (b * v_batch + kv_head.to(tl.int64) * v_head) * V_UNIT
    behind = keys - queries
    at = query + behind

    own = query.to(tl.int64) * Q_STRIDE + (row % GROUP).to(tl.int64) * q_head * Q_UNIT
    dense = ((b * queries + query) * (KV_HEADS * GROUP) + kv_head * GROUP + row % GROUP) * DIM
    held = ()
    slopes = ()
    sums = ()
    delta = tl.zeros((M,), tl.float32)
    for part in tl.static_range(len(WIDTHS)):
        d = _lanes(part, WIDTHS)
        held += (tl.load(q + own + d, mask=inside & (d < QK_DIM), other=0.0),)
        slopes += (tl.load(dout + dense + d, mask=inside & (d < DIM), other=0.0),)
        y = tl.load(out + dense + d, mask=inside & (d < DIM), other=0.0)
        delta += tl.sum(slopes[part].to(tl.float32) * y.to(tl.float32), 1)
        sums += (tl.zeros_like(held[part].to(tl.float32)),)
    highest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)

    first = 0
    last = length
    if CAUSAL:
        last = tl.minimum(length, tl.minimum((start + M - 1) // GROUP, queries - 1) + behind + 1)
    if WINDOW > 0:
        first = tl.maximum(start // GROUP + behind + 1 - WINDOW, 0) // N * N
    factor = scale * 1.4426950408889634
    for j in range(first, last, N):
        # One long offset a tile, and short ones for its rows.
        k_tile = k + tl.cast(j, tl.int64) * K_STRIDE
        v_tile = v + tl.cast(j, tl.int64) * V_STRIDE
        rows = tl.arange(0, N)[:, None]
        s = tl.zeros((M, N), tl.float32)
        dp = tl.zeros((M, N), tl.float32)
        read = ()
        for part in tl.static_range(len(WIDTHS)):
            d = _lanes(part, WIDTHS)
            read += (tl.load(k_tile + rows * K_STRIDE + d, mask=(j + rows < length) & (d < QK_DIM), other=0.0),)
            s = tl.dot(held[part], tl.trans(read[part]), s, input_precision="ieee")
            values = tl.load(v_tile + rows * V_STRIDE + d, mask=(j + rows < length) & (d < DIM), other=0.0)
            dp = tl.dot(slopes[part], tl.trans(values), dp, input_precision="ieee")
        column = j + tl.arange(0, N)[None, :]
        seen = column < length
        if CAUSAL:
            seen &= column <= at
        if WINDOW > 0:
            seen &= column > at - WINDOW
        s = tl.where(seen, s * factor, float("-inf"))
        top = tl.maximum(highest, tl.max(s, 1))
        # A row that has seen no key yet.
        base = tl.where(top == float("-inf"), 0.0, top)
        p = tl.exp2(s - base[:, None])
        fade = tl.exp2(highest - base)
        highest = top
        total = total * fade + tl.sum(p, 1)
        ds = (p * (dp - delta[:, None])).to(k.dtype.element_ty)
        faded = ()
        for part in tl.static_range(len(WIDTHS)):
            faded += (tl.dot(ds, read[part], sums[part] * fade[:, None], input_precision="ieee"),)
        sums = faded

    some = tl.where(total == 0, 1.0, total)
    for part in tl.static_range(len(WIDTHS)):
        d = _lanes(part, WIDTHS)
        tl.store(dq + dense + d, sums[part] * (scale / some)[:, None], mask=inside & (d < DIM))
    line = start + tl.arange(0, M)
    at_row = (b * KV_HEADS + kv_head) * queries * GROUP + line
    tl.store(norms + at_row, highest + tl.log2(some), mask=line < queries * GROUP)
    tl.store(deltas + at_row, delta, mask=line < queries * GROUP)


@triton.jit(do_not_specialize=DYNAMIC)
def _key_gradients(
    q,
    k,
    v,
    lengths,
    dout,
    norms,
    deltas,
    dk,
    dv,
    scale,
    q_batch,
    q_head,
    k_batch,
    k_head,
    v_batch,
    v_head,
    queries,
    keys,
    Q_STRIDE: tl.constexpr,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    Q_UNIT: tl.constexpr,
    K_UNIT: tl.constexpr,
    V_UNIT: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    QK_DIM: tl.constexpr,
    WIDTHS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """dk and dv of a tile of N keys, along the rows (queries with their GROUP heads) that see one of them. Scores lie
    transposed, keys by queries, as both products with them want them."""
    tiles = tl.cdiv(keys, N)
    start = tl.program_id(0) % tiles * N
    kv_head = tl.program_id(0) // tiles % KV_HEADS
    b = (tl.program_id(0) // tiles // KV_HEADS).to(tl.int64)
    key = start + tl.arange(0, N)[:, None]
    length = keys
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + b), keys).to(tl.int32)
    inside = key < length

    q += (b * q_batch + kv_head.to(tl.int64) * GROUP * q_head) * Q_UNIT
    k += (b * k_batch + kv_head.to(tl.int64) * k_head) * K_UNIT
    v += (b * v_batch + kv_head.to(tl.int64) * v_head) * V_UNIT
    dout += (b * queries * KV_HEADS + kv_head) * GROUP * DIM
    norms += (b * KV_HEADS + kv_head) * queries * GROUP
    deltas += (b * KV_HEADS + kv_head) * queries * GROUP
    behind = keys - queries

    held = ()
    values = ()
    key_sums = ()
    value_sums = ()
    for part in tl.static_range(len(WIDTHS)):
        d = _lanes(part, WIDTHS)
        held += (tl.load(k + key.to(tl.int64) * K_STRIDE + d, mask=inside & (d < QK_DIM), other=0.0),)
        values += (tl.load(v + key.to(tl.int64) * V_STRIDE + d, mask=inside & (d < DIM), other=0.0),)
        key_sums += (tl.zeros_like(held[part].to(tl.float32)),)
        value_sums += (tl.zeros_like(held[part].to(tl.float32)),)

    first = 0
    last = queries
    if CAUSAL:
        first = tl.maximum(start - behind, 0)
    if WINDOW > 0:
        last = tl.minimum(queries, tl.minimum(start + N, length) - 1 + WINDOW - behind)
    last = tl.where(start < length, last, first)
    factor = scale * 1.4426950408889634
    for i in range(first * GROUP, last * GROUP, M):
        line = i + tl.arange(0, M)
        row = line[:, None]
        there = row < queries * GROUP
        own = (row // GROUP).to(tl.int64) * Q_STRIDE + (row % GROUP).to(tl.int64) * q_head * Q_UNIT
        dense = ((row // GROUP).to(tl.int64) * (KV_HEADS * GROUP) + row % GROUP) * DIM
        s = tl.zeros((N, M), tl.float32)
        dp = tl.zeros((N, M), tl.float32)
        read = ()
        slopes = ()
        for part in tl.static_range(len(WIDTHS)):
            d = _lanes(part, WIDTHS)
            read += (tl.load(q + own + d, mask=there & (d < QK_DIM), other=0.0),)
            slopes += (tl.load(dout + dense + d, mask=there & (d < DIM), other=0.0),)
            s = tl.dot(held[part], tl.trans(read[part]), s, input_precision="ieee")
            dp = tl.dot(values[part], tl.trans(slopes[part]), dp, input_precision="ieee")
        norm = tl.load(norms + line, mask=line < queries * GROUP, other=float("inf"))
        delta = tl.load(deltas + line, mask=line < queries * GROUP, other=0.0)
        # A key behind the length spoils its own sums only, which are not kept.
        p = tl.exp2(s * factor - norm[None, :])
        if CAUSAL:
            at = (line // GROUP + behind)[None, :]
            seen = key <= at
            if WINDOW > 0:
                seen &= key > at - WINDOW
            p = tl.where(seen, p, 0.0)
        ds = (p * (dp - delta[None, :])).to(q.dtype.element_ty)
        p = p.to(q.dtype.element_ty)
        more_keys = ()
        more_values = ()
        for part in tl.static_range(len(WIDTHS)):
            more_keys += (tl.dot(ds, read[part], key_sums[part], input_precision="ieee"),)
            more_values += (tl.dot(p, slopes[part], value_sums[part], input_precision="ieee"),)
        key_sums = more_keys
        value_sums = more_values

    dense = ((b * keys + key) * KV_HEADS + kv_head) * DIM
    for part in tl.static_range(len(WIDTHS)):
        d = _lanes(part, WIDTHS)
        there = (key < keys) & (d < DIM)
        tl.store(dk + dense + d, tl.where(inside, key_sums[part] * scale, 0.0), mask=there)
        tl.store(dv + dense + d, tl.where(inside, value_sums[part], 0.0), mask=there)


@triton.jit(do_not_specialize=["x_batch", "x_head", "position_batch", "tokens"])
def _turn_back(
    dturned,
    x,
    inv_freq,
    positions,
    lengths,
    dx,
    slopes,
    x_batch,
    x_head,
    position_batch,
    tokens,
    STRIDE: tl.constexpr,
    UNIT: tl.constexpr,
    TOTAL: tl.constexpr,
    DIM: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
):
    """The gradient of x by that of x turned, for HEADS of the TOTAL heads of ROWS tokens; and what they add to that of
    the frequencies, at the first component of each pair."""
    blocks = tl.cdiv(tokens, ROWS)
    groups = tl.cdiv(TOTAL, HEADS)
    token = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)[:, None]
    start = tl.program_id(0) // blocks % groups * HEADS
    b = (tl.program_id(0) // blocks // groups).to(tl.int64)
    if positions is not None:
        positions += b * position_batch
    length = tokens
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + b), tokens).to(tl.int32)
    inside = token < tokens
    d = tl.arange(0, BLOCK_D)[None, :]
    other = partner(d, PAIRS, INTERLEAVED)
    turning = d < 2 * PAIRS
    position = _position(positions, token, token, inside)
    cosine, sine = turns(inv_freq, position, d, PAIRS, INTERLEAVED)
    angles = tl.zeros((ROWS, BLOCK_D), tl.float32)
    for head in range(start, tl.minimum(start + HEADS, TOTAL)):
        dense = ((b * tokens + token) * TOTAL + head) * DIM
        own = tl.load(dturned + dense + d, mask=inside & (d < DIM), other=0.0).to(tl.float32)
        paired = tl.load(dturned + dense + other, mask=inside & turning, other=0.0).to(tl.float32)
        turned = own * cosine - paired * sine
        tl.store(dx + dense + d, turned, mask=inside & (d < DIM))
        if slopes is not None:
            at = (b * x_batch + tl.cast(head, tl.int64) * x_head) * UNIT + token.to(tl.int64) * STRIDE
            valid = (token < length) & turning
            mine = tl.load(x + at + d, mask=valid, other=0.0).to(tl.float32)
            others = tl.load(x + at + other, mask=valid, other=0.0).to(tl.float32)
            angles += mine * (paired * cosine + own * sine) - others * turned
    if slopes is not None:
        at = tl.program_id(0).to(tl.int64) * BLOCK_D + d
        tl.store(slopes + at, tl.sum(angles * position, 0, keep_dims=True), mask=d < BLOCK_D)


def _turned_back(
    dturned: Tensor,
    x: Tensor,
    inv_freq: Tensor,
    positions: Tensor | None,
    lengths: Tensor | None,
    interleaved: bool,
    wanted: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of x (batch, tokens, heads, head_dim) by that of x rotated, and in float32 what it adds to that of
    the frequencies (pairs,) if this is `wanted`. Tokens without positions stand at 0, 1, ...; those behind a row's
    length have no gradient."""
    batch, tokens, heads, dim = x.shape
    pairs = len(inv_freq)
    positions, position_batch = _by_row(positions)
    block = triton.next_power_of_2(dim)
    programs = batch * triton.cdiv(heads, HEADS) * triton.cdiv(tokens, ROWS)
    slopes = x.new_empty(programs, block, dtype=torch.float32) if wanted else None
    dx = torch.empty_like(dturned)
    _turn_back[(programs,)](
        dturned,
        x,
        inv_freq,
        positions,
        lengths,
        dx,
        slopes,
        x.stride(0) // unit(x),
        x.stride(2) // unit(x),
        position_batch,
        tokens,
        STRIDE=x.stride(1),
        UNIT=unit(x),
        TOTAL=heads,
        DIM=dim,
        PAIRS=pairs,
        INTERLEAVED=interleaved,
        BLOCK_D=block,
        ROWS=ROWS,
        HEADS=HEADS,
        num_warps=4,
    )
    if slopes is None:
        return dx, None
    by_pair = slopes.sum(0).narrow(0, 0, 2 * pairs).view((pairs, 2) if interleaved else (2, pairs))
    return dx, by_pair.select(int(interleaved), 0)


def _tiles(dim: int, wide: bool, few: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and keys of a tile in the pass over the queries, and in that over the keys."""
    if wide:
        # Without tensor cores a tile is small.
        side = 32 if dim <= 64 else 16
        return (FEW if few else side, 16), (FEW, side)
    return (FEW if few else 64, 64 if dim <= 48 else 32), (FEW if few else 32, 64 if dim <= 96 else 32)


def launch(
    grads: list[Tensor | None],
    outputs: list[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inv_freq: Tensor | None,
    q_positions: Tensor | None,
    k_positions: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
    window: int,
    interleaved: bool,
    scale: float,
    needs: list[bool],
) -> list[Tensor]:
    batch, queries, heads, dim = q.shape
    keys, kv_heads = k.shape[1:3]
    (dout,), (out,) = grads, outputs
    assert dout is not None
    if not out.numel() or not keys:
        pairs = zip((q, k, v, inv_freq), needs, strict=False)
        return [
            torch.zeros_like(t, memory_format=torch.contiguous_format) for t, need in pairs if need and t is not None
        ]
    dout, out = dout.contiguous(), out.contiguous()
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    lengths = None if lengths is None else lengths.contiguous()
    frequency = frequencies(inv_freq)
    group = heads // kv_heads
    wide = q.element_size() == 4
    (m, n), (m_keys, n_keys) = _tiles(dim, wide, queries * group <= FEW)
    widths = _widths(dim)
    dq = q.new_empty(q.shape)
    dk, dv = (t.new_empty(t.shape) for t in (k, v))
    norms, deltas = (q.new_empty(batch, kv_heads, queries * group, dtype=torch.float32) for _ in range(2))
    with on_device_of(q):
        turned_q, turned_k = q, k
        if frequency is not None:
            if q_positions is None and queries != keys:
                q_positions = torch.arange(keys - queries, keys, device=q.device)[None]
            turned_q = rotated(q, frequency, q_positions, interleaved)
            turned_k = rotated(k, frequency, k_positions, interleaved)
        sides = (turned_q, turned_k, v)
        strides = [stride // unit(t) for t in sides for stride in (t.stride(0), t.stride(2))]
        constants = {
            **{f"{name}_STRIDE": t.stride(1) for name, t in zip("QKV", sides, strict=True)},
            **{f"{name}_UNIT": unit(t) for name, t in zip("QKV", sides, strict=True)},
            **{"KV_HEADS": kv_heads, "GROUP": group, "DIM": dim, "QK_DIM": turned_q.shape[3], "WIDTHS": widths},
            **{"CAUSAL": causal, "WINDOW": window, "num_warps": 4, "num_stages": 1 if wide else 2},
        }
        _query_gradients[(triton.cdiv(queries * group, m) * kv_heads * batch,)](
            *sides, lengths, out, dout, dq, norms, deltas, scale, *strides, queries, keys, M=m, N=n, **constants
        )
        if any(needs[1:4]):
            _key_gradients[(triton.cdiv(keys, n_keys) * kv_heads * batch,)](
                *sides,
                lengths,
                dout,
                norms,
                deltas,
                dk,
                dv,
                scale,
                *strides,
                queries,
                keys,
                M=m_keys,
                N=n_keys,
                **constants,
            )
        slope = None
        if frequency is not None:
            dq, slope = _turned_back(dq, q, frequency, q_positions, None, interleaved, needs[3])
            if needs[1] or needs[3]:
                dk, more = _turned_back(dk, k, frequency, k_positions, lengths, interleaved, needs[3])
                slope = None if slope is None or more is None else slope + more
    found = [grad for grad, need in zip((dq, dk, dv), needs, strict=False) if need]
    if inv_freq is not None and needs[3]:
        found.append(torch.zeros_like(inv_freq) if slope is None else slope.to(inv_freq.dtype))
    return found
