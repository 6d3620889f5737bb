"""The record of page_fork."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.page_fork import page_fork
from fastspeech.kernels.paging import Maker
from fastspeech.kernels.spec import Case, Cost, OpSpec
from fastspeech.kernels.tolerance import EXACT


def _inputs(
    dtype: torch.dtype,
    generator: torch.Generator,
    pages: int,
    heads: int,
    page_size: int,
    head_dim: int,
    sources: tuple[int, ...],
    targets: tuple[int, ...],
) -> dict[str, Any]:
    made = Maker(dtype, generator)
    return {
        "key_pages": made.normal(pages, heads, page_size, head_dim),
        "value_pages": made.normal(pages, heads, page_size, head_dim),
        "sources": torch.tensor(sources, dtype=torch.int64),
        "targets": torch.tensor(targets, dtype=torch.int64),
    }


def _padding(key_pages: Tensor, sources: Tensor, targets: Tensor, **rest: Any) -> dict[str, Tensor]:
    replaced = torch.zeros(len(key_pages), dtype=torch.bool)
    replaced[targets[sources >= 0]] = True
    return {"key_pages": replaced[:, None, None, None], "value_pages": replaced[:, None, None, None]}


def _cost(
    itemsize: int,
    pages: int,
    heads: int,
    page_size: int,
    head_dim: int,
    sources: tuple[int, ...],
    targets: tuple[int, ...],
) -> Cost:
    return Cost(bytes=itemsize * 4 * sum(s >= 0 for s in sources) * heads * page_size * head_dim, flops=0)


def _vary(shape: Mapping[str, Any], rows: int, length: int) -> dict[str, Any]:
    copies = len(shape["sources"]) + rows
    pages, page_size = shape["pages"] + 2 * copies + abs(length), shape["page_size"] + abs(length)
    halves = {"sources": tuple(range(copies)), "targets": tuple(range(copies, 2 * copies))}
    return {**shape, "pages": pages, "page_size": page_size, **halves}


def _case(name: str, kind: Any, pages: int, heads: int, page_size: int, head_dim: int, **pairs: Any) -> Case:
    sizes = {"pages": pages, "heads": heads, "page_size": page_size, "head_dim": head_dim}
    return Case(name, kind, {**sizes, **pairs})


SPEC = OpSpec(
    name="page_fork",
    summary="copies of pages of a cache, for rows that go on from a shared past",
    call=page_fork,
    inputs=_inputs,
    cases=(
        _case("two copies", "ordinary", 9, 2, 16, 16, sources=(3, 6), targets=(8, 1)),
        _case("one page for all", "ordinary", 12, 1, 16, 24, sources=(5, 5, -1, 5), targets=(2, 9, 11, 7)),
        _case("odd sizes", "odd", 7, 3, 11, 9, sources=(1, 3, 0), targets=(4, 2, 6)),
        _case("odd page", "odd", 4, 5, 37, 52, sources=(2,), targets=(1,)),
        _case("nothing to copy", "edge", 4, 2, 16, 16, sources=(-1, -1), targets=(2, 3)),
        _case("no pairs", "edge", 3, 2, 16, 16, sources=(), targets=()),
        _case("one value a page", "edge", 2, 1, 1, 1, sources=(0,), targets=(1,)),
        # Four beams of 8 rows that part, on pages of 16 of Moonshine's base model.
        _case("moonshine beams", "model", 512, 8, 16, 52, sources=tuple(range(32)), targets=tuple(range(200, 232))),
    ),
    cost=_cost,
    padding=_padding,
    vary=_vary,
    tolerance=EXACT,
)
