"""The record of paged_attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.paged_attention import paged_attention
from fastspeech.kernels.paging import Maker, case, vary
from fastspeech.kernels.spec import Cost, OpSpec


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
    float8: bool = False,
    **flags: Any,
) -> dict[str, Any]:
    made = Maker(dtype, generator)
    pages, table = made.tables(batch, columns)
    if table is not None:
        # Beams share all but their last page.
        table[:, :-1] = table[::beams, :-1].repeat_interleave(beams, 0)
    return {
        "q": made.normal(batch, tokens, heads, head_dim),
        **made.pages(pages, heads if kv_heads is None else kv_heads, page_size, head_dim, float8),
        "table": table,
        "positions": torch.tensor(positions),
        "inv_freq": made.inv_freq(pairs),
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
    float8: bool = False,
    **rest: Any,
) -> Cost:
    slots = page_size * max(columns, 1)
    read = [len(_seen(tokens, slots, position, causal, window)) for position in positions]
    own = 2 * batch * tokens * heads * head_dim
    held = 2 * sum(read) * (kv_heads or heads) * head_dim
    # Scores and weighted sum, 2 flops a component each; of n queries each sees half of the newest n - 1 keys.
    pairs = sum(max(tokens * n - (causal * tokens * (tokens - 1)) // 2, 0) for n in read)
    return Cost(bytes=itemsize * own + (1 if float8 else itemsize) * held, flops=4 * pairs * heads * head_dim)


def _vary(shape: Mapping[str, Any], rows: int, length: int) -> dict[str, Any]:
    return {**vary(shape, rows, length), "beams": 1}


SPEC = OpSpec(
    name="paged_attention",
    summary="attention of new tokens over the pages of a cache or its rings, causal, windowed or full",
    call=paged_attention,
    inputs=_inputs,
    cases=(
        case("ring", "ordinary", 1, 2, 16, 32, 5, 31, 77, pairs=8, window=32),
        case("pages", "ordinary", 1, 2, 16, 16, 40, 63, columns=4, pairs=8),
        case("two tokens, window", "ordinary", 2, 2, 16, 16, 3, 40, pairs=8, window=11, interleaved=True),
        case("grouped heads", "ordinary", 2, 6, 16, 16, 20, 45, columns=3, kv_heads=2, pairs=4, scale=0.5),
        case("cross", "ordinary", 1, 2, 16, 48, 47, 30, causal=False),
        case("pages of 8 bits", "ordinary", 2, 6, 16, 16, 20, 45, columns=3, kv_heads=2, pairs=6, float8=True),
        case("head of 36", "odd", 1, 3, 36, 11, 37, 6, 30, columns=4, pairs=16, interleaved=True),
        case("head of 52", "odd", 3, 3, 52, 83, 64, 19, pairs=23, interleaved=True),
        case("head of 9", "odd", 2, 3, 9, 7, 12, 4, kv_heads=1, columns=3, pairs=4, window=5, interleaved=True),
        case("a prompt of 19", "odd", 19, 1, 20, 5, 9, 0, columns=6, pairs=7),
        case("windowed groups", "odd", 3, 6, 20, 37, 150, 33, kv_heads=2, window=29, pairs=9),
        case("cross of three to one", "odd", 3, 2, 12, 29, -2, 20, -3, causal=False),
        case("8 bits, head of 9", "odd", 1, 3, 9, 7, 12, 4, columns=3, pairs=4, window=5, float8=True),
        case("8 bits, many keys", "odd", 3, 2, 20, 13, 170, 2, columns=14, kv_heads=1, float8=True),
        case("idle rows", "edge", 1, 2, 16, 32, -1, 9, -1, pairs=8),
        case("all rows idle", "edge", 2, 2, 16, 16, -1, -2, columns=2),
        case("a first token", "edge", 1, 2, 16, 16, 0, pairs=8, columns=2),
        case("a row starts again", "edge", 2, 2, 16, 24, 100, 0, 51, window=20, pairs=8),
        case("window of one", "edge", 1, 1, 16, 16, 21, 3, window=1, pairs=8),
        case("beams", "edge", 1, 1, 16, 16, 37, 37, 37, 20, 20, 20, columns=3, beams=3, pairs=8),
        case("many keys, few rows", "edge", 3, 2, 16, 16, 170, 2, columns=12, kv_heads=1, pairs=4),
        case("a ring too short", "edge", 2, 1, 16, 16, 40, pairs=8, window=16),
        case("the widest head", "edge", 2, 2, 256, 16, 20, columns=2, pairs=128),
        case("one slot", "edge", 1, 1, 1, 1, 3, window=1),
        # Kyutai's 2.6B, one stream and many; Mimi's encoder; Moonshine's decoder: a step, a prompt, the encoder's keys.
        case("kyutai one stream", "model", 1, 32, 64, 384, 5000, pairs=32, window=375),
        case("kyutai 64 streams", "model", 1, 32, 64, 384, *range(374, 1014, 10), pairs=32, window=375),
        case("mimi 64 streams", "model", 2, 8, 64, 256, *range(0, 640, 10), pairs=32, window=250),
        case("moonshine step", "model", 1, 8, 36, 16, *range(32, 160, 2), columns=13, pairs=16, interleaved=True),
        case("moonshine prompt", "model", 60, 8, 52, 16, *((0,) * 8), columns=12, pairs=23, interleaved=True),
        case("moonshine cross", "model", 1, 8, 52, 416, *range(414, 286, -2), causal=False),
        case("grouped pages", "model", 1, 32, 128, 16, *range(999, 1015), columns=64, kv_heads=8, pairs=64),
        case("8 bits, 64 rows", "model", 1, 8, 64, 16, *range(0, 192, 3), columns=12, pairs=32, float8=True),
    ),
    cost=_cost,
    padding=_padding,
    batched=_batched,
    vary=_vary,
)
