"""page_append: a program rotates and writes some heads of one token.

A token's angles are computed once for all heads of a program, and a key's values read twice, the second time as the
partners of their pairs, from the first level of cache. A token that is not real costs the read of its position.

For Kyutai's 2.6B at 64 streams a layer's call reads and writes 0.5 MB each, 0.25 us of an H200's 4.3 TB/s: it is a
launch and two dependent reads long, the position's or the page's and the token's own.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastspeech.kernels.float8 import as_bytes, narrowed
from fastspeech.kernels.launch import on_device_of, unit
from fastspeech.kernels.rotation import partner, turns

TILE = 1024
"""Values of keys, and of values, that a program moves."""

DYNAMIC = ["tokens", "columns", "page_size", "k_row", "v_row", "key_page", "key_head", "value_page", "value_head"]


@triton.jit
def _as_stored(x, pages, scales, head, HEADS: tl.constexpr):
    """x over the scales of its heads, as the pages hold it."""
    if scales is not None:
        x = tl.div_rn(x.to(tl.float32), tl.load(scales + head, mask=head < HEADS, other=1.0).to(tl.float32))
    if pages.dtype.element_ty == tl.uint8:
        return narrowed(x.to(tl.float32))
    return x.to(pages.dtype.element_ty)


@triton.jit(do_not_specialize=DYNAMIC)
def _page_append(
    keys,
    values,
    key_pages,
    value_pages,
    table,
    positions,
    counts,
    inv_freq,
    key_scales,
    value_scales,
    tokens,
    columns,
    page_size,
    k_row,
    k_token,
    k_head,
    k_dim,
    v_row,
    v_token,
    v_head,
    v_dim,
    key_page,
    key_head,
    key_slot,
    key_dim,
    value_page,
    value_head,
    value_slot,
    value_dim,
    UNIT: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    PAIRS: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Strides of rows, tokens, pages, heads and slots count UNIT elements."""
    BLOCKS: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    row = (tl.program_id(0) // BLOCKS // tokens).to(tl.int64)
    token = tl.program_id(0) // BLOCKS % tokens
    position = tl.load(positions + row)
    real = position >= 0
    if counts is not None:
        real = real & (token < tl.load(counts + row))
    if real:
        position += token
        page = row
        if table is not None:
            page = tl.load(table + row * columns + position // page_size % columns).to(tl.int64)
        slot = position % page_size
        head = (tl.program_id(0) % BLOCKS * BLOCK_H + tl.arange(0, BLOCK_H)).to(tl.int64)[:, None]
        d = tl.arange(0, BLOCK_D)[None, :]
        inside = (head < HEADS) & (d < DIM)

        own = keys + (row * k_row + token.to(tl.int64) * k_token + head * k_head) * UNIT
        key = tl.load(own + d.to(tl.int64) * k_dim, mask=inside, other=0.0)
        if inv_freq is not None:
            cosine, sine = turns(inv_freq, position.to(tl.float32), d, PAIRS, INTERLEAVED)
            beside = partner(d, PAIRS, INTERLEAVED).to(tl.int64)
            other = tl.load(own + beside * k_dim, mask=inside & (d < 2 * PAIRS), other=0.0)
            key = key.to(tl.float32) * cosine + other.to(tl.float32) * sine
        to = key_pages + (page * key_page + head * key_head + slot * key_slot) * UNIT
        key = _as_stored(key, key_pages, key_scales, head, HEADS)
        tl.store(to + d.to(tl.int64) * key_dim, key, mask=inside)

        own = values + (row * v_row + token.to(tl.int64) * v_token + head * v_head) * UNIT
        value = tl.load(own + d.to(tl.int64) * v_dim, mask=inside, other=0.0)
        to = value_pages + (page * value_page + head * value_head + slot * value_slot) * UNIT
        value = _as_stored(value, value_pages, value_scales, head, HEADS)
        tl.store(to + d.to(tl.int64) * value_dim, value, mask=inside)


def launch(
    keys: Tensor,
    values: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    table: Tensor | None,
    positions: Tensor,
    counts: Tensor | None,
    inv_freq: Tensor | None,
    interleaved: bool,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
) -> None:
    rows, tokens, heads, dim = keys.shape
    columns = 1 if table is None else table.shape[1]
    block_d = triton.next_power_of_2(dim)
    block_h = min(max(TILE // block_d, 1), triton.next_power_of_2(heads))
    u = unit(keys, values, key_pages, value_pages)
    strides = (
        s // u if axis < 3 else s for t in (keys, values, key_pages, value_pages) for axis, s in enumerate(t.stride())
    )
    with on_device_of(keys):
        _page_append[(rows * tokens * triton.cdiv(heads, block_h),)](
            keys,
            values,
            as_bytes(key_pages),
            as_bytes(value_pages),
            None if table is None else table.contiguous(),
            positions.contiguous(),
            None if counts is None else counts.contiguous(),
            None if inv_freq is None else inv_freq.contiguous(),
            None if key_scales is None else key_scales.contiguous(),
            None if value_scales is None else value_scales.contiguous(),
            tokens,
            columns,
            key_pages.shape[2],
            *strides,
            UNIT=u,
            HEADS=heads,
            DIM=dim,
            PAIRS=0 if inv_freq is None else len(inv_freq),
            INTERLEAVED=interleaved,
            BLOCK_H=block_h,
            BLOCK_D=block_d,
            num_warps=4,
        )
