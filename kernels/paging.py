"""What the records of the ops on pages share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.spec import Case, Kind

STORED = torch.float8_e4m3fn


class Maker:
    """Makes the inputs of a case, in its dtype."""

    def __init__(self, dtype: torch.dtype, generator: torch.Generator) -> None:
        self.dtype = dtype
        self.generator = generator

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def pages(self, count: int, heads: int, page_size: int, head_dim: int, float8: bool) -> dict[str, Tensor | None]:
        """Keys and values in pages, and of float8 the scales of their heads."""
        made = {f"{side}_pages": self.normal(count, heads, page_size, head_dim) for side in ("key", "value")}
        if not float8:
            return {**made, "key_scales": None, "value_scales": None}
        # No powers of two, by which it would be all the same whether one multiplies or divides.
        scales = {f"{side}_scales": 0.01 + torch.rand(heads, generator=self.generator) for side in ("key", "value")}
        return {**{name: side.to(STORED) for name, side in made.items()}, **scales}

    def tables(self, rows: int, columns: int) -> tuple[int, Tensor | None]:
        """How many pages there are, and those of each row: in no order, the first and the last one nobody's. Without
        columns row r owns page r."""
        if not columns:
            return rows, None
        pages = torch.randperm(rows * columns, generator=self.generator) + 1
        return rows * columns + 2, pages.to(torch.int32).view(rows, columns)

    def inv_freq(self, pairs: int) -> Tensor | None:
        return (10000.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)).to(self.dtype) if pairs else None


def vary(shape: Mapping[str, Any], rows: int, length: int) -> dict[str, Any]:
    """So many more rows, and columns or slots."""
    varied = {**shape, "batch": shape["batch"] + rows}
    if shape.get("columns"):
        varied["columns"] = shape["columns"] + abs(length)
    else:
        varied["page_size"] = shape["page_size"] + length
    return {**varied, "positions": (7,) * varied["batch"]}


def case(name: str, kind: Kind, tokens: int, heads: int, head_dim: int, page_size: int, *at: int, **rest: Any) -> Case:
    """A case of rows at the positions `at`."""
    sizes = {"tokens": tokens, "heads": heads, "head_dim": head_dim, "page_size": page_size}
    return Case(name, kind, {"batch": len(at), **sizes, "positions": at, **rest})
