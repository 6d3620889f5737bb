"""A step of a decoder for rows of many requests, each at a position of its own, over pages of one pool."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastspeech.generation.graphs import upload
from fastspeech.generation.pages import PagedCache, PagePool, as_table
from fastspeech.generation.seats import Places
from fastspeech.kernels import page_append, paged_attention

if TYPE_CHECKING:
    from fastspeech.layers.decoder import Decoder, Step


def read(decoder: Decoder, steps: list[Step], input_ids: Tensor, caches: Sequence[PagedCache]) -> Tensor:
    """Hidden states (rows, hidden) after the last of n further tokens of all rows of these caches, which advance.

    Args:
        steps: what `decoder.steps` returns.
        input_ids: (rows, n) int64, the rows of one cache after those of another.
        caches: on one pool, whose pages the frames' keys and values are in.
    """
    device, pool = input_ids.device, caches[0].pool
    count = input_ids.shape[1]
    pool.copy([pair for cache in caches for pair in cache.prepare(count)])
    of_row = [cache for cache in caches for _ in cache.tables]
    table = as_table([table for cache in caches for table in cache.tables], device)
    cross_table = as_table([cache.cross_table for cache in of_row], device)
    places = torch.tensor([[cache.length for cache in of_row], [cache.frames - count for cache in of_row]])
    positions, cross_positions = upload(places, device).unbind()
    most = max(cache.length for cache in caches)
    hidden = through(decoder, steps, pool, input_ids, Places(positions, table, cross_positions, cross_table, most))
    for cache in caches:
        cache.advance(count)
    return hidden[:, -1]


def through(decoder: Decoder, steps: list[Step], pool: PagePool, input_ids: Tensor, places: Places) -> Tensor:
    """Hidden states (rows, n, hidden) after further tokens input_ids (rows, n), whose keys and values are written to
    the pool's pages. Nothing depends on what the host knows but shapes and `places.most`; what comes of an idle row
    says nothing."""
    rows, count = input_ids.shape
    position_ids = places.positions.clamp(min=0)[:, None]
    if count > 1:
        position_ids = position_ids + torch.arange(count, device=input_ids.device)
    entry = decoder.enter(input_ids, None, position_ids, places.most)
    x, h, rotate = entry.x, entry.h, entry.rotate
    heads, head_dim = decoder.heads, decoder.head_dim
    sizes = [heads, decoder.kv_heads, decoder.kv_heads]
    for step, keys, values, (of_keys, of_values) in zip(steps, pool.keys, pool.values, pool.scales, strict=True):
        scales: dict[str, Any] = {"key_scales": of_keys, "value_scales": of_values}
        by_head = step.qkv(h).view(rows, count, -1, head_dim)
        if rotate is not None:
            by_head = rotate(by_head)
        q, k, v = by_head.split(sizes, dim=2)
        page_append(k, v, keys, values, places.table, places.positions, **scales)
        y = paged_attention(q, keys, values, places.table, places.positions, **scales)
        x, h = step.norm_cross(x, step.out(y.flatten(2)))
        q = step.cross_q(h).view(rows, count, heads, head_dim)
        y = paged_attention(q, keys, values, places.cross_table, places.cross_positions, causal=False, **scales)
        x, h = step.norm_mlp(x, step.cross_out(y.flatten(2)))
        x, h = step.norm_next(x, step.mlp(h))
    return h


def listen(decoder: Decoder, encoded: Tensor, caches: Sequence[PagedCache]) -> None:
    """Put the keys and values of encoder frames (B, frames, width) into the pages of B caches, each `cache.frames` of
    them."""
    table = as_table([cache.cross_table for cache in caches], encoded.device)
    counts = upload(torch.tensor([cache.frames for cache in caches]), encoded.device)
    hear(decoder, encoded, caches[0].pool, table, counts)


def hear(decoder: Decoder, encoded: Tensor, pool: PagePool, table: Tensor, counts: Tensor | None) -> None:
    """Put the keys and values of encoder frames (B, frames, width) into the pages that table (B, columns) int32 names,
    of each row the first `counts` (B,), or all."""
    first = torch.zeros(len(encoded), dtype=torch.int64, device=encoded.device)
    keys, values = decoder.cross_keys_values(encoded)
    for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
        of_keys, of_values = pool.scales[layer]
        page_append(
            k.transpose(1, 2),
            v.transpose(1, 2),
            pool.keys[layer],
            pool.values[layer],
            table,
            first,
            counts,
            key_scales=of_keys,
            value_scales=of_values,
        )
