"""paged_attention: queries over the keys and values that a cache holds in pages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels import checks
from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op
from fastspeech.kernels.paged_attention.reference import paged_attention as _reference


def _fake(
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
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _triton_limits(q: Tensor, *rest: Any) -> str | None:
    if q.element_size() > 4:
        return "float64 is served by the reference"
    if q.shape[3] > 256:
        return f"head dim {q.shape[3]}, at most 256 fit a tile"
    return None


def _cuda_limits(q: Tensor, *rest: Any) -> str | None:
    return "float64 is served by the reference" if q.element_size() > 4 else None


_op = Op(
    _reference,
    _fake,
    (
        Implementation("triton", "fastspeech.kernels.paged_attention.triton", _triton_limits),
        Implementation("cuda", "fastspeech.kernels.paged_attention.cuda", _cuda_limits, on_cpu=True, on_cuda=False),
    ),
)


def paged_attention(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    table: Tensor | None,
    positions: Tensor,
    inv_freq: Tensor | None = None,
    interleaved: bool = False,
    causal: bool = True,
    window: int = 0,
    scale: float | None = None,
    key_scales: Tensor | None = None,
    value_scales: Tensor | None = None,
) -> Tensor:
    """Attention of each row's newest tokens over the pages of a cache (Kwon et al. 2023), to which `page_append` has
    added these tokens.

    Position p of a row lies in slot p % page_size of page table[row, p // page_size % columns]. Query i of a row
    stands at position positions[row] + i; it sees that position and the earlier ones, and of them only the last
    `window` where that is set, or where not `causal` all positions below positions[row] + tokens (cross-attention to
    a cache of `frames` keys has positions frames - tokens). Positions that a ring has overwritten are not seen: for
    every query to find all it may see, columns * page_size is at least window + tokens - 1, or without a window the
    number of positions. Queries are rotated here as `page_append` rotates keys.

    Args:
        q: (rows, tokens, heads, head_dim), any strides, not rotated where inv_freq is given.
        key_pages, value_pages: (pages, kv_heads, page_size, head_dim), any strides, in the dtype of q or
            float8_e4m3fn; each key/value head serves heads // kv_heads consecutive heads. Slots that no query sees may
            hold anything, be it NaN.
        table: (rows, columns) int32, the pages of each row, which rows may share; entries of which no query sees a
            position may hold anything. None where row r owns page r alone.
        positions: (rows,) int64, the position of each row's first query; a row is idle where it is negative, or where
            not causal below 1 - tokens.
        inv_freq: (pairs,), float32 or the dtype of q, 2 * pairs <= head_dim; None for no rotation.
        interleaved: which dims make a pair.
        causal: whether a query sees no later position.
        window: positions that a causal query sees at most, its own included; 0 for all.
        scale: factor of the scores, head_dim ** -0.5 where None.
        key_scales, value_scales: (kv_heads,), float32 or the dtype of q; what a head's stored keys or values are
            multiplied by. None for 1.

    Returns:
        (rows, tokens, heads, head_dim), contiguous, in q's dtype; an idle row and a query that sees no key give 0.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit; a window without `causal`.
    """
    checks.rank("q", q, 4, "(rows, tokens, heads, head_dim)")
    checks.pages(key_pages, value_pages)
    rows, _, heads, head_dim = q.shape
    pages, kv_heads, page_size, _ = key_pages.shape
    checks.shape(
        "key_pages", key_pages, (pages, kv_heads, page_size, head_dim), "(pages, kv_heads, page_size, head_dim)"
    )
    checks.floating(q=q)
    checks.stored(key_pages, q, key_scales=key_scales, value_scales=value_scales)
    if heads % kv_heads:
        raise ValueError(f"{kv_heads} key/value heads do not divide {heads} heads")
    checks.rows_of_pages(table, positions, rows, key_pages)
    checks.rotation(inv_freq, q)
    if window < 0 or (window and not causal):
        raise ValueError(f"window must be 0, or positive with causal=True; got {window}")
    scale = head_dim**-0.5 if scale is None else scale
    return _op(
        q,
        key_pages,
        value_pages,
        table,
        positions,
        inv_freq,
        interleaved,
        causal,
        window,
        scale,
        key_scales,
        value_scales,
    )
