"""The record of page_append."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.page_append import page_append
from fastspeech.kernels.paging import Maker, case, vary
from fastspeech.kernels.spec import Cost, OpSpec
from fastspeech.kernels.tolerance import EXACT, RULE


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
    counts: tuple[int, ...] | None = None,
    pairs: int = 0,
    interleaved: bool = False,
    float8: bool = False,
) -> dict[str, Any]:
    made = Maker(dtype, generator)
    pages, table = made.tables(batch, columns)
    # Slices of one packed projection, as a model has them.
    both = made.normal(batch, tokens, 2, heads, head_dim)
    if float8:
        # From what is stored as 0 to what is beyond the largest number.
        both *= 10.0 ** torch.randint(-4, 3, both.shape, generator=generator)
    keys, values = both.unbind(2)
    return {
        "keys": keys,
        "values": values,
        **made.pages(pages, heads, page_size, head_dim, float8),
        "table": table,
        "positions": torch.tensor(positions),
        "counts": None if counts is None else torch.tensor(counts),
        "inv_freq": made.inv_freq(pairs),
        "interleaved": interleaved,
    }


def _padding(keys: Tensor, positions: Tensor, counts: Tensor | None, **rest: Any) -> dict[str, Tensor]:
    idle = (positions < 0)[:, None]
    if counts is not None:
        idle = idle | (torch.arange(keys.shape[1]) >= counts[:, None])
    return {"keys": idle[:, :, None, None], "values": idle[:, :, None, None]}


def _batched(table: Tensor | None, **rest: Any) -> tuple[str, ...]:
    own = ("keys", "values", "key_pages", "value_pages", "positions", "counts")
    return own if table is None else ()


def _cost(
    itemsize: int,
    batch: int,
    tokens: int,
    heads: int,
    head_dim: int,
    page_size: int,
    positions: tuple[int, ...],
    columns: int = 0,
    counts: tuple[int, ...] | None = None,
    pairs: int = 0,
    interleaved: bool = False,
    float8: bool = False,
) -> Cost:
    real = sum(n for n, p in zip(counts or (tokens,) * batch, positions, strict=True) if p >= 0)
    # A rotated pair is 6 flops, its angle one.
    moved = 2 * real * heads * head_dim
    return Cost(bytes=moved * (itemsize + (1 if float8 else itemsize)), flops=real * pairs * (6 * heads + 1))


def _vary(shape: Mapping[str, Any], rows: int, length: int) -> dict[str, Any]:
    varied = vary(shape, rows, length)
    # A prompt is of any length, a step of so many tokens.
    if shape["tokens"] > 8:
        varied["tokens"] = shape["tokens"] + length
    if shape.get("counts"):
        varied["counts"] = (1,) * varied["batch"]
    return varied


SPEC = OpSpec(
    name="page_append",
    summary="rotated keys and values written into the pages of a cache, by row positions",
    call=page_append,
    inputs=_inputs,
    cases=(
        case("ring", "ordinary", 2, 2, 16, 16, 5, 14, 31, pairs=8),
        case("pages", "ordinary", 3, 2, 16, 16, 15, 40, columns=3, pairs=8),
        case("ragged prefill", "ordinary", 9, 2, 16, 4, 1, 7, columns=4, counts=(9, 5), pairs=4, interleaved=True),
        case("moves only", "ordinary", 4, 3, 24, 48, 1, 90),
        case("pages of 8 bits", "ordinary", 3, 3, 16, 16, 15, 40, columns=3, pairs=6, float8=True),
        case("head of 36", "odd", 5, 3, 36, 11, 37, 6, 110, columns=3, pairs=16, interleaved=True, counts=(5, 1, 4)),
        case("head of 9", "odd", 3, 5, 9, 7, 12, 4, pairs=4, interleaved=True),
        case("a prompt of 37", "odd", 37, 1, 20, 5, 9, columns=9, pairs=7),
        case("8 bits, head of 9", "odd", 2, 5, 9, 7, 12, 4, -1, pairs=4, interleaved=True, float8=True),
        case("idle rows", "edge", 2, 2, 16, 16, -1, 6, -1, pairs=8),
        case("all rows idle", "edge", 1, 2, 16, 16, -1, -3, columns=2, pairs=8),
        case("a row without tokens", "edge", 3, 2, 16, 8, 0, 9, -1, counts=(3, 0, 2), columns=2),
        case("a whole ring at once", "edge", 16, 1, 8, 16, 23, 0, pairs=4),
        case("two hours in", "edge", 1, 2, 16, 16, 90000, 90001, pairs=8),
        case("one token, one slot", "edge", 1, 1, 1, 1, 5),
        # Kyutai's 2.6B at 64 streams on rings of its window, Mimi's two latents a frame, a prompt for pages of 16.
        case("kyutai 64 streams", "model", 1, 32, 64, 384, *range(100, 740, 10), pairs=32, interleaved=True),
        case("mimi 64 streams", "model", 2, 8, 64, 256, *range(0, 640, 10), pairs=32),
        case("moonshine prompt", "model", 60, 8, 52, 16, *((0,) * 8), columns=12, pairs=23, interleaved=True),
        case("8 bits, 64 rows", "model", 1, 8, 64, 16, *range(0, 192, 3), columns=12, pairs=32, float8=True),
    ),
    cost=_cost,
    padding=_padding,
    batched=_batched,
    vary=_vary,
    tolerance=(RULE, EXACT),
)
