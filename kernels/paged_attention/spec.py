"""The record of paged_attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.paged_attention import paged_attention
from fastspeech.kernels.spec import Case, Cost, OpSpec


def _inputs(
    dtype: torch.dtype,
    generator: torch.Generator,
    batch: int,
    tokens: int,
    heads: int,
    head_dim: int,
    page_size: int,
    positions: tuple[int, ...],
    columns: int = 0,
    beams: int = 1,
    kv_heads: int | None = None,
    pairs: int = 0,
    **flags: Any,
) -> dict[str, Any]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    pages, table = batch, None
    if columns:
        # Pages in no order, the first and the last one nobody's; beams share all but their last one.
        pages = batch * columns + 2
        table = (torch.randperm(batch * columns, generator=generator) + 1).to(torch.int32).view(batch, columns)
        table[:, :-1] = table[::beams, :-1].repeat_interleave(beams, 0)
    kv_heads = heads if kv_heads is None else kv_heads
    return {
        "q": normal(batch, tokens, heads, head_dim),
        "key_pages": normal(pages, kv_heads, page_size, head_dim),
        "value_pages": normal(pages, kv_heads, page_size, head_dim),
        "table": table,
        "positions": torch.tensor(positions),
        "inv_freq": (10000.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)).to(dtype) if pairs else None,
        **flags,
    }


def _seen(tokens: int, slots: int, position: int, causal: bool = True, window: int = 0, **rest: Any) -> range:
    """The positions that some query of a row sees."""
    end = position + tokens
    if end <= 0 or (causal and position < 0):
        return range(0)
    return range(max(0, end - slots, position + 1 - window if window else 0), end)


def _padding(q: Tensor, key_pages: Tensor, table: Tensor | None, positions: Tensor, **flags: Any) -> dict[str, Tensor]:
    pages, _, page_size, _ = key_pages.shape
    tables = torch.arange(pages)[:, None] if table is None else table
    unseen = torch.ones(pages, page_size, dtype=torch.bool)
    idle = torch.zeros(len(q), dtype=torch.bool)
    columns = tables.shape[1]
    for row, position in enumerate(positions.tolist()):
        seen = torch.tensor(_seen(q.shape[1], columns * page_size, position, **flags), dtype=torch.int64)
        unseen[tables[row, seen // page_size % columns].long(), seen % page_size] = False
        idle[row] = len(seen) == 0
    unseen, idle = unseen[:, None, :, None], idle[:, None, None, None]
    return {"q": idle, "key_pages": unseen, "value_pages": unseen}


def _batched(table: Tensor | None, **rest: Any) -> tuple[str, ...]:
    return ("q", "positions", *(("key_pages", "value_pages") if table is None else ("table",)))


def _cost(
    itemsize: int,
    batch: int,
    tokens: int,
    heads: int,
    head_dim: int,
    page_size: int,
    positions: tuple[int, ...],
    columns: int = 0,
    kv_heads: int | None = None,
    causal: bool = True,
    window: int = 0,
    **rest: Any,
) -> Cost:
    slots = page_size * max(columns, 1)
    read = [len(_seen(tokens, slots, position, causal, window)) for position in positions]
    moved = 2 * batch * tokens * heads * head_dim + 2 * sum(read) * (kv_heads or heads) * head_dim
    # Scores and weighted sum, 2 flops a component each; of n queries each sees half of the newest n - 1 keys.
    pairs = sum(max(tokens * n - (causal * tokens * (tokens - 1)) // 2, 0) for n in read)
    return Cost(bytes=itemsize * moved, flops=4 * pairs * heads * head_dim)


def _vary(shape: Mapping[str, Any], rows: int, length: int) -> dict[str, Any]:
    varied = {**shape, "batch": shape["batch"] + rows}
    if shape.get("columns"):
        varied["columns"] = shape["columns"] + abs(length)
    else:
        varied["page_size"] = shape["page_size"] + length
    return {**varied, "beams": 1, "positions": (7,) * varied["batch"]}


def _case(name: str, kind: Any, tokens: int, heads: int, head_dim: int, page_size: int, *at: int, **rest: Any) -> Case:
    sizes = {"tokens": tokens, "heads": heads, "head_dim": head_dim, "page_size": page_size}
    return Case(name, kind, {"batch": len(at), **sizes, "positions": at, **rest})


SPEC = OpSpec(
    name="paged_attention",
    summary="attention of new tokens over the pages of a cache or its rings, causal, windowed or full",
    call=paged_attention,
    inputs=_inputs,
    cases=(
        _case("ring", "ordinary", 1, 2, 16, 32, 5, 31, 77, pairs=8, window=32),
        _case("pages", "ordinary", 1, 2, 16, 16, 40, 63, columns=4, pairs=8),
        _case("two tokens, window", "ordinary", 2, 2, 16, 16, 3, 40, pairs=8, window=11, interleaved=True),
        _case("grouped heads", "ordinary", 2, 6, 16, 16, 20, 45, columns=3, kv_heads=2, pairs=4, scale=0.5),
        _case("cross", "ordinary", 1, 2, 16, 48, 47, 30, causal=False),
        _case("head of 36", "odd", 1, 3, 36, 11, 37, 6, 30, columns=4, pairs=16, interleaved=True),
        _case("head of 52", "odd", 3, 3, 52, 83, 64, 19, pairs=23, interleaved=True),
        _case("head of 9", "odd", 2, 3, 9, 7, 12, 4, kv_heads=1, columns=3, pairs=4, window=5, interleaved=True),
        _case("a prompt of 19", "odd", 19, 1, 20, 5, 9, 0, columns=6, pairs=7),
        _case("windowed groups", "odd", 3, 6, 20, 37, 150, 33, kv_heads=2, window=29, pairs=9),
        _case("cross of three to one", "odd", 3, 2, 12, 29, -2, 20, -3, causal=False),
        _case("idle rows", "edge", 1, 2, 16, 32, -1, 9, -1, pairs=8),
        _case("all rows idle", "edge", 2, 2, 16, 16, -1, -2, columns=2),
        _case("a first token", "edge", 1, 2, 16, 16, 0, pairs=8, columns=2),
        _case("a row starts again", "edge", 2, 2, 16, 24, 100, 0, 51, window=20, pairs=8),
        _case("window of one", "edge", 1, 1, 16, 16, 21, 3, window=1, pairs=8),
        _case("beams", "edge", 1, 1, 16, 16, 37, 37, 37, 20, 20, 20, columns=3, beams=3, pairs=8),
        _case("many keys, few rows", "edge", 3, 2, 16, 16, 170, 2, columns=12, kv_heads=1, pairs=4),
        _case("a ring too short", "edge", 2, 1, 16, 16, 40, pairs=8, window=16),
        _case("the widest head", "edge", 2, 2, 256, 16, 20, columns=2, pairs=128),
        _case("one slot", "edge", 1, 1, 1, 1, 3, window=1),
        # Kyutai's 2.6B, one stream and many; Mimi's encoder; Moonshine's decoder: a step, a prompt, the encoder's keys.
        _case("kyutai one stream", "model", 1, 32, 64, 384, 5000, pairs=32, window=375),
        _case("kyutai 64 streams", "model", 1, 32, 64, 384, *range(374, 1014, 10), pairs=32, window=375),
        _case("mimi 64 streams", "model", 2, 8, 64, 256, *range(0, 640, 10), pairs=32, window=250),
        _case("moonshine step", "model", 1, 8, 36, 16, *range(32, 160, 2), columns=13, pairs=16, interleaved=True),
        _case("moonshine prompt", "model", 60, 8, 52, 16, *((0,) * 8), columns=12, pairs=23, interleaved=True),
        _case("moonshine cross", "model", 1, 8, 52, 416, *range(414, 286, -2), causal=False),
        _case("grouped pages", "model", 1, 32, 128, 16, *range(999, 1015), columns=64, kv_heads=8, pairs=64),
    ),
    cost=_cost,
    padding=_padding,
    batched=_batched,
    vary=_vary,
)
