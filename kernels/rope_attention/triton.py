"""rope_attention as one pass of online softmax, rotating what it reads in registers.

A rotated component costs about 30 instructions, 24 of them for the cosine and the sine of its angle. A query is rotated
by the one program that reads it, but a key is read by every tile of queries: there the rotation of 64 keys of 48
components would cost each warp some 700 instructions, twice what it spends on their scores, softmax and sums (324 in
bfloat16 on sm_90), and at 30 s of Moonshine each of 20 tiles would do it again. So the keys of more queries than one
small tile are rotated ahead, by a small kernel that shares angles between heads: for a row of 30 s it reads 0.7 MB and
writes 1 MB, 0.4 us at an H200's 4.3 TB/s, and tiles of keys are then copied to shared memory in whole vectors, ahead of
their use. A small tile, as decoding has, reads each key once and rotates it itself.

Query heads that share a key head are rows of one tile, so that one query of several heads fills it and the keys are
read once for all. Tiles of keys outside the window, after the last query or behind the length are not visited, and only
tiles that one of these edges crosses are masked. A head is held in parts of 64, 32 and 16 components: one of 36 pays
for 48, not for 64.

By these counts, and not by measurement, 32 rows of 30 s with 8 heads of 36 in bfloat16 are 102 thousand tiles of 64 x
64 and take 150 us at 1.7 GHz, bound by instructions; the exponentials alone would take 120.

Registers suffice for the heads of the four models; in float32 heads of 128 and more spill a few, on sm_80 those of 256.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastspeech.kernels.launch import on_device_of, unit
from fastspeech.kernels.rotation import partner, turns

LOG2E = 1.4426950408889634
FEW = 16
"""Rows of the small tile."""
ROWS = 16
"""Keys that a program of the small kernel rotates, of HEADS heads."""
HEADS = 4


@triton.jit
def _turned(x, rows, inside, d, cosine, sine, DIM: tl.constexpr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Rotated components d of the rows at offsets `rows` of x; 0 where not `inside`, or behind the head's end."""
    own = tl.load(x + rows + d, mask=inside & (d < DIM), other=0.0).to(tl.float32)
    other = tl.load(x + rows + partner(d, PAIRS, INTERLEAVED), mask=inside & (d < 2 * PAIRS), other=0.0)
    return (own * cosine + other.to(tl.float32) * sine).to(x.dtype.element_ty)


@triton.jit
def _position(positions, default, tokens, inside):
    """The positions of tokens of a row, as given or by default, in float32."""
    if positions is None:
        return default.to(tl.float32)
    else:
        return tl.load(positions + tokens, mask=inside, other=0).to(tl.float32)


@triton.jit(do_not_specialize=["k_batch", "k_head", "position_batch", "keys"])
def _turn_keys(
    k,
    inv_freq,
    positions,
    out,
    k_batch,
    k_head,
    position_batch,
    keys,
    STRIDE: tl.constexpr,
    UNIT: tl.constexpr,
    KV_HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PADDED: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Rotated keys to (batch, kv_heads, keys, PADDED), with zeros behind the head's DIM components."""
    blocks = tl.cdiv(keys, ROWS)
    groups = tl.cdiv(KV_HEADS, HEADS)
    key = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)[:, None]
    start = tl.program_id(0) // blocks % groups * HEADS
    b = (tl.program_id(0) // blocks // groups).to(tl.int64)
    if positions is not None:
        positions += b * position_batch
    inside = key < keys
    d = tl.arange(0, BLOCK_D)[None, :]
    cosine, sine = turns(inv_freq, _position(positions, key, key, inside), d, PAIRS, INTERLEAVED)
    key = key.to(tl.int64)
    for head in range(start, tl.minimum(start + HEADS, KV_HEADS)):
        x = k + (b * k_batch + tl.cast(head, tl.int64) * k_head) * UNIT
        turned = _turned(x, key * STRIDE, inside, d, cosine, sine, DIM, PAIRS, INTERLEAVED)
        at = ((b * KV_HEADS + head) * keys + key) * PADDED
        tl.store(out + at + d, turned, mask=inside & (d < PADDED))


@triton.jit
def _lanes(part, WIDTHS: tl.constexpr):
    """The head's components of one part."""
    first = 0
    for before in tl.static_range(part):
        first += WIDTHS[before]
    return (first + tl.arange(0, WIDTHS[part]))[None, :]


@triton.jit
def _walk(
    highest,
    total,
    sums,
    held,
    k,
    v,
    inv_freq,
    k_positions,
    at,
    length,
    scale,
    begin,
    end,
    K_STRIDE: tl.constexpr,
    V_STRIDE: tl.constexpr,
    DIM: tl.constexpr,
    K_DIM: tl.constexpr,
    WIDTHS: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """The online softmax's state after the tiles of keys from `begin` to `end`. Keys are rotated here if there are
    PAIRS; without MASKED every query sees every key of them."""
    for j in range(begin, end, N):
        key = j + tl.arange(0, N)[:, None]
        inside = key < length if MASKED else key >= 0
        # One long offset a tile, and short ones for its rows.
        k_tile = k + tl.cast(j, tl.int64) * K_STRIDE
        v_tile = v + tl.cast(j, tl.int64) * V_STRIDE
        rows = tl.arange(0, N)[:, None]
        s = tl.zeros((M, N), tl.float32)
        for part in tl.static_range(len(WIDTHS)):
            d = _lanes(part, WIDTHS)
            if PAIRS > 0:
                position = _position(k_positions, key, key, inside)
                cosine, sine = turns(inv_freq, position, d, PAIRS, INTERLEAVED)
                keys = _turned(k_tile, rows * K_STRIDE, inside, d, cosine, sine, K_DIM, PAIRS, INTERLEAVED)
            else:
                keys = tl.load(k_tile + rows * K_STRIDE + d, mask=inside & (d < K_DIM), other=0.0)
            s = tl.dot(held[part], tl.trans(keys), s, input_precision="ieee")
        if MASKED:
            column = j + tl.arange(0, N)[None, :]
            seen = column < length
            if CAUSAL:
                seen &= column <= at
            if WINDOW > 0:
                seen &= column > at - WINDOW
            s = tl.where(seen, s * scale, float("-inf"))
            top = tl.maximum(highest, tl.max(s, 1))
            # A row that has seen no key yet.
            base = tl.where(top == float("-inf"), 0.0, top)
            p = tl.exp2(s - base[:, None])
        else:
            base = tl.maximum(highest, tl.max(s, 1) * scale)
            top = base
            p = tl.exp2(s * scale - base[:, None])
        fade = tl.exp2(highest - base)
        highest = top
        total = total * fade + tl.sum(p, 1)
        p = p.to(v.dtype.element_ty)
        faded = ()
        for part in tl.static_range(len(WIDTHS)):
            d = _lanes(part, WIDTHS)
            values = tl.load(v_tile + rows * V_STRIDE + d, mask=inside & (d < DIM), other=0.0)
            faded += (tl.dot(p, values, sums[part] * fade[:, None], input_precision="ieee"),)
        sums = faded
    return highest, total, sums


DYNAMIC = ["q_batch", "q_head", "k_batch", "k_head", "v_batch", "v_head"]
DYNAMIC += ["q_position_batch", "k_position_batch", "queries", "keys"]


@triton.jit(do_not_specialize=DYNAMIC)
def _rope_attention(
    q,
    k,
    v,
    inv_freq,
    q_positions,
    k_positions,
    lengths,
    out,
    scale,
    q_batch,
    q_head,
    k_batch,
    k_head,
    v_batch,
    v_head,
    q_position_batch,
    k_position_batch,
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
    K_DIM: tl.constexpr,
    WIDTHS: tl.constexpr,
    Q_PAIRS: tl.constexpr,
    K_PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    CAUSAL: tl.constexpr,
    WINDOW: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """A tile of M rows: queries, each with its GROUP heads of one key head. Strides of batch and head count units."""
    tiles = tl.cdiv(queries * GROUP, M)
    # The last queries first: where causal they see the most keys.
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
    if q_positions is not None:
        q_positions += b * q_position_batch
    if k_positions is not None:
        k_positions += b * k_position_batch

    # The keys at which the first query, the last one and each row stand.
    behind = keys - queries
    lowest = start // GROUP + behind
    furthest = tl.minimum((start + M - 1) // GROUP, queries - 1) + behind
    at = query + behind

    own = query.to(tl.int64) * Q_STRIDE + (row % GROUP).to(tl.int64) * q_head * Q_UNIT
    held = ()
    sums = ()
    for part in tl.static_range(len(WIDTHS)):
        d = _lanes(part, WIDTHS)
        if Q_PAIRS > 0:
            position = _position(q_positions, at, query, inside)
            cosine, sine = turns(inv_freq, position, d, Q_PAIRS, INTERLEAVED)
            held += (_turned(q, own, inside, d, cosine, sine, DIM, Q_PAIRS, INTERLEAVED),)
        else:
            held += (tl.load(q + own + d, mask=inside & (d < DIM), other=0.0),)
        sums += (tl.zeros_like(held[part].to(tl.float32)),)
    highest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)

    # Tiles before `clear` are crossed by the window's edge, those from `crossed` on by the diagonal or the length.
    first = 0
    clear = 0
    last = length
    crossed = tl.maximum(length, 0) // N * N
    if CAUSAL:
        last = tl.minimum(length, furthest + 1)
        crossed = tl.minimum(crossed, tl.maximum(lowest + 1, 0) // N * N)
    if WINDOW > 0:
        first = tl.maximum(lowest + 1 - WINDOW, 0) // N * N
        clear = tl.cdiv(tl.maximum(furthest + 1 - WINDOW, 0), N) * N
        crossed = tl.maximum(crossed, clear)
    for phase in tl.static_range(3):
        if phase == 0:
            begin, end = first, tl.minimum(clear, last)
        elif phase == 1:
            begin, end = clear, crossed
        else:
            begin, end = crossed, last
        if phase > 0 or WINDOW > 0:
            highest, total, sums = _walk(
                highest,
                total,
                sums,
                held,
                k,
                v,
                inv_freq,
                k_positions,
                at,
                length,
                scale,
                begin,
                end,
                K_STRIDE,
                V_STRIDE,
                DIM,
                K_DIM,
                WIDTHS,
                K_PAIRS,
                INTERLEAVED,
                CAUSAL,
                WINDOW,
                phase != 1,
                M,
                N,
            )

    norm = 1.0 / tl.where(total == 0, 1.0, total)[:, None]
    out += ((b * queries + query) * (KV_HEADS * GROUP) + kv_head * GROUP + row % GROUP) * DIM
    for part in tl.static_range(len(WIDTHS)):
        d = _lanes(part, WIDTHS)
        tl.store(out + d, (sums[part] * norm).to(out.dtype.element_ty), mask=inside & (d < DIM))


def _widths(head_dim: int) -> tuple[int, ...]:
    """The head dim, rounded up to 16, in parts of 64 and smaller powers of two."""
    whole, rest = divmod(16 * triton.cdiv(head_dim, 16), 64)
    return (64,) * whole + tuple(width for width in (32, 16) if rest & width)


def _by_row(positions: Tensor | None) -> tuple[Tensor | None, int]:
    """Positions with dense rows, and from one row of the batch to the next."""
    if positions is None:
        return None, 0
    positions = positions if positions.stride(1) == 1 else positions.contiguous()
    return positions, positions.stride(0) if positions.shape[0] > 1 else 0


def frequencies(inv_freq: Tensor | None) -> Tensor | None:
    """Dense frequencies; None where nothing is rotated."""
    return inv_freq.contiguous() if inv_freq is not None and len(inv_freq) else None


def rotated(x: Tensor, inv_freq: Tensor, positions: Tensor | None, interleaved: bool) -> Tensor:
    """x (batch, tokens, heads, head_dim), its last axis dense, rotated, with zeros behind the head up to the sum of
    `_widths`; each head's tokens lie side by side. Tokens without positions stand at 0, 1, ..."""
    batch, tokens, heads, dim = x.shape
    positions, position_batch = _by_row(positions)
    padded = sum(_widths(dim))
    out = x.new_empty(batch, heads, tokens, padded)
    _turn_keys[(batch * triton.cdiv(heads, HEADS) * triton.cdiv(tokens, ROWS),)](
        x,
        inv_freq,
        positions,
        out,
        x.stride(0) // unit(x),
        x.stride(2) // unit(x),
        position_batch,
        tokens,
        STRIDE=x.stride(1),
        UNIT=unit(x),
        KV_HEADS=heads,
        DIM=dim,
        PADDED=padded,
        PAIRS=len(inv_freq),
        INTERLEAVED=interleaved,
        BLOCK_D=triton.next_power_of_2(padded),
        ROWS=ROWS,
        HEADS=HEADS,
        num_warps=4,
    )
    return out.transpose(1, 2)


def launch(
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
) -> Tensor:
    batch, queries, heads, dim = q.shape
    keys, kv_heads = k.shape[1:3]
    out = q.new_empty(q.shape)
    if not out.numel() or not keys:
        return out.zero_()
    if scale < 0:
        # The kernel takes the largest product for the largest score.
        q, scale = -q, -scale
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    lengths = None if lengths is None else lengths.contiguous()
    inv_freq = frequencies(inv_freq)
    (q_positions, q_position_batch), (k_positions, k_position_batch) = _by_row(q_positions), _by_row(k_positions)
    pairs = 0 if inv_freq is None else len(inv_freq)
    group = heads // kv_heads
    few = queries * group <= FEW
    # Without tensor cores a tile is small; angles, or the sums of a wide head, take registers.
    wide = q.element_size() == 4
    m, n = FEW if few else 32 if wide else 64, 16 if wide else 32 if (few and pairs) or dim > 128 else 64
    widths = _widths(dim)
    with on_device_of(q):
        if inv_freq is not None and not few:
            k = rotated(k, inv_freq, k_positions, interleaved)
        _rope_attention[(triton.cdiv(queries * group, m) * kv_heads * batch,)](
            q,
            k,
            v,
            inv_freq,
            q_positions,
            k_positions,
            lengths,
            out,
            scale * LOG2E,
            q.stride(0) // unit(q),
            q.stride(2) // unit(q),
            k.stride(0) // unit(k),
            k.stride(2) // unit(k),
            v.stride(0) // unit(v),
            v.stride(2) // unit(v),
            q_position_batch,
            k_position_batch,
            queries,
            keys,
            Q_STRIDE=q.stride(1),
            K_STRIDE=k.stride(1),
            V_STRIDE=v.stride(1),
            Q_UNIT=unit(q),
            K_UNIT=unit(k),
            V_UNIT=unit(v),
            KV_HEADS=kv_heads,
            GROUP=group,
            DIM=dim,
            K_DIM=k.shape[3],
            WIDTHS=widths,
            Q_PAIRS=pairs,
            K_PAIRS=pairs if few else 0,
            INTERLEAVED=interleaved,
            CAUSAL=causal,
            WINDOW=window,
            M=m,
            N=n,
            num_warps=4,
            num_stages=1 if wide else 2,
        )
    return out
