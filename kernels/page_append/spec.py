"""The record of page_append."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.page_append import page_append
from fastspeech.kernels.spec import Case, Cost, OpSpec
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
) -> dict[str, Any]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    pages, table = batch, None
    if columns:
        # Pages in no order, the first and the last one nobody's.
        pages = batch * columns + 2
        table = (torch.randperm(batch * columns, generator=generator) + 1).to(torch.int32).view(batch, columns)
    # Slices of one packed projection, as a model has them.
    keys, values = normal(batch, tokens, 2, heads, head_dim).unbind(2)
    return {
        "keys": keys,
        "values": values,
        "key_pages": normal(pages, heads, page_size, head_dim),
        "value_pages": normal(pages, heads, page_size, head_dim),
        "table": table,
        "positions": torch.tensor(positions),
        "counts": None if counts is None else torch.tensor(counts),
        "inv_freq": (10000.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)).to(dtype) if pairs else None,
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
) -> Cost:
    real = sum(n for n, p in zip(counts or (tokens,) * batch, positions, strict=True) if p >= 0)
    # A rotated pair is 6 flops, its angle one.
    return Cost(bytes=itemsize * 4 * real * heads * head_dim, flops=real * pairs * (6 * heads + 1))


def _vary(shape: Mapping[str, Any], rows: int, length: int) -> dict[str, Any]:
    varied = {**shape, "batch": shape["batch"] + rows}
    if shape.get("columns"):
        varied["columns"] = shape["columns"] + abs(length)
    else:
        varied["page_size"] = shape["page_size"] + length
    # A prompt is of any length, a step of so many tokens.
    if shape["tokens"] > 8:
        varied["tokens"] = shape["tokens"] + length
    if shape.get("counts"):
        varied["counts"] = (1,) * varied["batch"]
    return {**varied, "positions": (7,) * varied["batch"]}


def _case(name: str, kind: Any, tokens: int, heads: int, head_dim: int, page_size: int, *at: int, **rest: Any) -> Case:
    sizes = {"tokens": tokens, "heads": heads, "head_dim": head_dim, "page_size": page_size}
    return Case(name, kind, {"batch": len(at), **sizes, "positions": at, **rest})


SPEC = OpSpec(
    name="page_append",
    summary="rotated keys and values written into the pages of a cache, by row positions",
    call=page_append,
    inputs=_inputs,
    cases=(
        _case("ring", "ordinary", 2, 2, 16, 16, 5, 14, 31, pairs=8),
        _case("pages", "ordinary", 3, 2, 16, 16, 15, 40, columns=3, pairs=8),
        _case("ragged prefill", "ordinary", 9, 2, 16, 4, 1, 7, columns=4, counts=(9, 5), pairs=4, interleaved=True),
        _case("moves only", "ordinary", 4, 3, 24, 48, 1, 90),
        _case("head of 36", "odd", 5, 3, 36, 11, 37, 6, 110, columns=3, pairs=16, interleaved=True, counts=(5, 1, 4)),
        _case("head of 9", "odd", 3, 5, 9, 7, 12, 4, pairs=4, interleaved=True),
        _case("a prompt of 37", "odd", 37, 1, 20, 5, 9, columns=9, pairs=7),
        _case("idle rows", "edge", 2, 2, 16, 16, -1, 6, -1, pairs=8),
        _case("all rows idle", "edge", 1, 2, 16, 16, -1, -3, columns=2, pairs=8),
        _case("a row without tokens", "edge", 3, 2, 16, 8, 0, 9, -1, counts=(3, 0, 2), columns=2),
        _case("a whole ring at once", "edge", 16, 1, 8, 16, 23, 0, pairs=4),
        _case("two hours in", "edge", 1, 2, 16, 16, 90000, 90001, pairs=8),
        _case("one token, one slot", "edge", 1, 1, 1, 1, 5),
        # Kyutai's 2.6B at 64 streams on rings of its window, Mimi's two latents a frame, a prompt for pages of 16.
        _case("kyutai 64 streams", "model", 1, 32, 64, 384, *range(100, 740, 10), pairs=32, interleaved=True),
        _case("mimi 64 streams", "model", 2, 8, 64, 256, *range(0, 640, 10), pairs=32),
        _case("moonshine prompt", "model", 60, 8, 52, 16, *((0,) * 8), columns=12, pairs=23, interleaved=True),
    ),
    cost=_cost,
    padding=_padding,
    batched=_batched,
    vary=_vary,
    tolerance=(RULE, EXACT),
)
