"""paged_attention: one pass of online softmax over the keys a row sees, split over programs where rows are few.

A program holds the queries of a key/value head: T tokens times G heads of the group, which share the keys and values
they are multiplied with. Its walk starts at the first key that its queries see, so that keys before a window cost
nothing, and ends behind the last; keys stand N to a tile, whose slots follow from their positions one by one, so that
a page need not hold a whole tile. With fewer than PROGRAMS programs the walk is cut into `splits` pieces of whole
tiles. How many follows from the sizes of the call, never from positions: a CUDA graph may capture it. Each piece leaves
its sums, and a second kernel adds them in order.

Numbers of two bytes go through tensor cores. For float32, which has none, each of the N lanes of a tile keeps a softmax
of its own, of every N-th key, so that nothing but a key's own product is summed across threads within the walk.

Kyutai's 2.6B at 64 streams with full windows reads 64 x 32 heads x 375 keys x 64 values twice a layer, 197 MB in
bfloat16: 46 us at the 4.3 TB/s an H200 copies at, against 0.2 GFLOP, which 15 empty queries in each tile of 16 make 3.
One stream is 3 MB and 32 heads: 6 pieces of 64 keys each make 192 programs, and the launches take the time. Moonshine
base at batch 64, after 100 tokens, reads 64 x 8 x 100 x 52 values twice, 11 MB or 2.5 us.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastspeech.kernels.float8 import as_bytes, widened
from fastspeech.kernels.launch import on_device_of, unit
from fastspeech.kernels.rotation import partner, turns

LOG2E = 1.4426950408889634
PROGRAMS = 264
"""Two for each of an H200's SMs."""
KEYS = 64
"""At most of a tile, and the slots for which a piece is made at the least."""

DYNAMIC = [
    *("tokens", "columns", "page_size", "window", "splits", "tiles", "q_row"),
    *("k_page", "k_head", "v_page", "v_head"),
]


@triton.jit
def _number(stored, DTYPE: tl.constexpr):
    """What a page holds, as a number: float8_e4m3fn comes as bytes."""
    return widened(stored).to(DTYPE) if stored.dtype == tl.uint8 else stored


@triton.jit(do_not_specialize=DYNAMIC)
def _paged_attention(
    q,
    key_pages,
    value_pages,
    table,
    positions,
    inv_freq,
    key_scales,
    value_scales,
    out,
    sums_out,
    stats_out,
    scale,
    tokens,
    columns,
    page_size,
    window,
    splits,
    tiles,
    q_row,
    q_token,
    q_head,
    k_page,
    k_head,
    k_dim,
    v_page,
    v_head,
    v_dim,
    K_SLOT: tl.constexpr,
    V_SLOT: tl.constexpr,
    UNIT: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    CAUSAL: tl.constexpr,
    T: tl.constexpr,
    G: tl.constexpr,
    N: tl.constexpr,
    DOT: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """A piece of the keys for T tokens of the heads of a group. Strides but the dims' count UNIT elements.

    A tile's row m is head m % G of token m // G, of which those behind GROUP and `tokens` are empty. Without DOT every
    one of the N lanes keeps a softmax of its own, of each N-th key.
    """
    M: tl.constexpr = T * G
    LANES: tl.constexpr = 1 if DOT else N
    split = tl.program_id(0) % splits
    tile = tl.program_id(0) // splits % tiles
    head = (tl.program_id(0) // splits // tiles % KV_HEADS).to(tl.int64)
    row = (tl.program_id(0) // splits // tiles // KV_HEADS).to(tl.int64)
    position = tl.load(positions + row).to(tl.int64)
    first = tile * T
    slots = columns * page_size

    # The keys that the tile's queries see, and where the walk over them starts: at a multiple of N, as pages do.
    end = position + tokens
    begin = tl.maximum(end - slots, 0)
    if CAUSAL:
        end = tl.where(position < 0, 0, tl.minimum(end, position + first + T))
        begin = tl.maximum(begin, position + first + 1 - window)
    start = begin // N * N
    count = tl.maximum(end - start, 0).to(tl.int32)
    ring = (start % slots).to(tl.int32)

    token = first + tl.arange(0, T)[:, None, None]
    member = tl.arange(0, G)[None, :, None]
    d = tl.arange(0, BLOCK_D)[None, None, :]
    inside = (token < tokens) & (member < GROUP) & (d < DIM)
    own = q + (row * q_row + token.to(tl.int64) * q_token + (head * GROUP + member) * q_head) * UNIT
    query = tl.load(own + d, mask=inside, other=0.0)
    if inv_freq is not None:
        cosine, sine = turns(inv_freq, (position + token).to(tl.float32), d, PAIRS, INTERLEAVED)
        beside = partner(d, PAIRS, INTERLEAVED)
        other = tl.load(own + beside, mask=inside & (d < 2 * PAIRS), other=0.0)
        query = (query.to(tl.float32) * cosine + other.to(tl.float32) * sine).to(q.dtype.element_ty)
    query = tl.reshape(query, (M, BLOCK_D))

    if key_scales is not None:
        scale *= tl.load(key_scales + head).to(tl.float32)
    key_pages += head * k_head * UNIT
    value_pages += head * v_head * UNIT
    n = tl.arange(0, N)
    d = tl.arange(0, BLOCK_D)[None, :]
    m = tl.arange(0, M)
    at = (position - start).to(tl.int32) + first + m // G
    behind = (begin - start).to(tl.int32)
    highest = tl.full((M, LANES), float("-inf"), tl.float32)
    total = tl.zeros((M, LANES), tl.float32)
    sums = tl.zeros((M, BLOCK_D) if DOT else (M, N, BLOCK_D), tl.float32)
    piece = tl.cdiv(tl.cdiv(count, N), splits) * N
    for j in range(split * piece, tl.minimum((split + 1) * piece, count), N):
        key = j + n
        valid = (key >= behind) & (key < count)
        slot = (ring + key) % slots
        page = row
        if table is not None:
            page = tl.load(table + row * columns + slot // page_size, mask=valid, other=0).to(tl.int64)
        slot = (slot % page_size).to(tl.int64)
        lanes = valid[:, None] & (d < DIM)
        keys = tl.load(
            key_pages + (page * k_page * UNIT + slot * K_SLOT)[:, None] + d.to(tl.int64) * k_dim,
            mask=lanes,
            other=0,
        )
        keys = _number(keys, q.dtype.element_ty)
        if DOT:
            s = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale
        else:
            s = tl.sum(query[:, None, :] * keys[None, :, :], 2) * scale
        seen = valid[None, :]
        if CAUSAL:
            ago = at[:, None] - key[None, :]
            seen = seen & (ago >= 0) & (ago < window)
        s = tl.where(seen, s, float("-inf"))
        top = tl.maximum(highest, tl.max(s, 1, keep_dims=True) if DOT else s)
        # A query that has seen no key yet has nothing to fade.
        above = tl.where(top == float("-inf"), 0.0, top)
        p = tl.exp2(s - above)
        fade = tl.exp2(highest - above)
        highest = top
        total = total * fade + (tl.sum(p, 1, keep_dims=True) if DOT else p)
        values = tl.load(
            value_pages + (page * v_page * UNIT + slot * V_SLOT)[:, None] + d.to(tl.int64) * v_dim,
            mask=lanes,
            other=0,
        )
        values = _number(values, q.dtype.element_ty)
        if DOT:
            sums = tl.dot(p.to(values.dtype), values, sums * fade, input_precision="ieee")
        else:
            sums = sums * fade[:, :, None] + p[:, :, None] * values[None, :, :]

    if not DOT:
        top = tl.max(highest, 1, keep_dims=True)
        fade = tl.exp2(highest - tl.where(top == float("-inf"), 0.0, top))
        highest = top
        total = tl.sum(total * fade, 1, keep_dims=True)
        sums = tl.sum(sums * fade[:, :, None], 1)
    if value_scales is not None:
        sums *= tl.load(value_scales + head).to(tl.float32)
    token = first + m // G
    live = ((token < tokens) & (m % G < GROUP))[:, None]
    inside = live & (d < DIM)
    if splits == 1:
        to = (((row * tokens + token) * KV_HEADS + head) * GROUP + m % G)[:, None]
        tl.store(out + to * DIM + d, (sums / tl.where(total == 0, 1.0, total)).to(out.dtype.element_ty), mask=inside)
    else:
        to = (tl.program_id(0).to(tl.int64) * M + m)[:, None]
        tl.store(stats_out + 2 * to, highest, mask=live)
        tl.store(stats_out + 2 * to + 1, total, mask=live)
        tl.store(sums_out + to * DIM + d, sums, mask=inside & (total > 0))


@triton.jit(do_not_specialize=["tokens", "splits", "tiles"])
def _add_pieces(
    pieces,
    stats,
    out,
    tokens,
    splits,
    tiles,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    T: tl.constexpr,
    G: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The weighted mean of what the programs of a tile have left, in the order of their keys."""
    head = tl.program_id(0) // tiles % KV_HEADS
    row = (tl.program_id(0) // tiles // KV_HEADS).to(tl.int64)
    m = tl.arange(0, T * G)
    d = tl.arange(0, BLOCK_D)[None, :]
    token = tl.program_id(0) % tiles * T + m // G
    live = (token < tokens) & (m % G < GROUP)
    highest = tl.full((T * G,), float("-inf"), tl.float32)
    total = tl.zeros((T * G,), tl.float32)
    sums = tl.zeros((T * G, BLOCK_D), tl.float32)
    for split in range(splits):
        at = (tl.program_id(0).to(tl.int64) * splits + split) * (T * G) + m
        peak = tl.load(stats + 2 * at, mask=live, other=float("-inf"))
        weight = tl.load(stats + 2 * at + 1, mask=live, other=0.0)
        top = tl.maximum(highest, peak)
        above = tl.where(top == float("-inf"), 0.0, top)
        fade = tl.exp2(highest - above)
        rise = tl.exp2(peak - above)
        highest = top
        total = total * fade + weight * rise
        # A piece without keys has left no sums.
        piece = tl.load(pieces + at[:, None] * DIM + d, mask=(weight > 0)[:, None] & (d < DIM), other=0.0)
        sums = sums * fade[:, None] + piece * rise[:, None]
    sums = sums / tl.where(total == 0, 1.0, total)[:, None]
    to = ((row * tokens + token) * KV_HEADS + head) * GROUP + m % G
    tl.store(out + to[:, None] * DIM + d, sums.to(out.dtype.element_ty), mask=live[:, None] & (d < DIM))


def launch(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    table: Tensor | None,
    positions: Tensor,
    inv_freq: Tensor | None,
    interleaved: bool,
    causal: bool,
    window: int,
    scale: float,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
) -> Tensor:
    rows, tokens, heads, dim = q.shape
    _, kv_heads, page_size, _ = key_pages.shape
    columns = 1 if table is None else table.shape[1]
    q = q if q.stride(3) == 1 else q.contiguous()
    out = q.new_empty(q.shape)

    if out.numel() == 0:
        return out

    group = heads // kv_heads
    block_d = max(triton.next_power_of_2(dim), 16)
    t, g = triton.next_power_of_2(tokens), triton.next_power_of_2(group)
    dot = q.element_size() == 2
    if dot:
        n = min(max(4096 // block_d, 16), KEYS)
        t = min(t, max(n // g, 1))
        # Tensor cores take 16 queries.
        g = max(g, 16 // t)
    else:
        t = min(t, max(4 // g, 1))
        n = min(max(2048 // (block_d * t * g), 1), KEYS)
    tiles = triton.cdiv(tokens, t)
    programs = rows * kv_heads * tiles
    splits = max(min(triton.cdiv(PROGRAMS, programs), columns * page_size // KEYS), 1)
    left = programs * splits * t * g if splits > 1 else 0
    sums, stats = (q.new_empty(left, width, dtype=torch.float32) for width in (dim, 2))

    u = unit(q, key_pages, value_pages)
    sizes = {"KV_HEADS": kv_heads, "GROUP": group, "DIM": dim, "T": t, "G": g, "BLOCK_D": block_d}
    with on_device_of(q):
        _paged_attention[(programs * splits,)](
            q,
            as_bytes(key_pages),
            as_bytes(value_pages),
            None if table is None else table.contiguous(),
            positions.contiguous(),
            None if inv_freq is None else inv_freq.contiguous(),
            None if key_scales is None else key_scales.contiguous(),
            None if value_scales is None else value_scales.contiguous(),
            out,
            sums,
            stats,
            scale * LOG2E,
            tokens,
            columns,
            page_size,
            window or 2**31 - 1,
            splits,
            tiles,
            *(stride // u for stride in q.stride()[:3]),
            *(stride // u for stride in key_pages.stride()[:2]),
            key_pages.stride(3),
            *(stride // u for stride in value_pages.stride()[:2]),
            value_pages.stride(3),
            K_SLOT=key_pages.stride(2),
            V_SLOT=value_pages.stride(2),
            UNIT=u,
            PAIRS=0 if inv_freq is None else len(inv_freq),
            INTERLEAVED=interleaved,
            CAUSAL=causal,
            N=n,
            DOT=dot,
            **sizes,
            num_warps=4,
            num_stages=3,
        )
        if splits > 1:
            _add_pieces[(programs,)](sums, stats, out, tokens, splits, tiles, **sizes, num_warps=4)
    return out
