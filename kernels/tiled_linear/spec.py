"""The record of tiled_linear."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.spec import Case, Cost, OpSpec
from fastspeech.kernels.tiled_linear import TILE, in_tiles, tiled_linear


def _inputs(
    dtype: torch.dtype, generator: torch.Generator, rows: int, entering: int, outputs: int, bias: bool = True
) -> dict[str, Any]:
    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "x": normal(rows, entering),
        "tiles": in_tiles(normal(outputs, entering)),
        "bias": normal(outputs) if bias else None,
        "outputs": outputs,
    }


def _padding(tiles: Tensor, outputs: int, **rest: Any) -> dict[str, Tensor]:
    return {"tiles": (torch.arange(len(tiles) * TILE) >= outputs).view(-1, 1, TILE)}


def _cost(itemsize: int, rows: int, entering: int, outputs: int, bias: bool = True) -> Cost:
    moved = entering * outputs + rows * (entering + outputs) + bias * outputs
    return Cost(bytes=itemsize * moved, flops=2 * rows * entering * outputs)


def _vary(shape: Mapping[str, Any], rows: int, length: int) -> dict[str, Any]:
    return {**shape, "rows": shape["rows"] + rows + length}


SPEC = OpSpec(
    name="tiled_linear",
    summary="a linear map whose weights lie in the order in which a decoding step on the CPU reads them",
    call=tiled_linear,
    inputs=_inputs,
    cases=(
        Case("five rows", "ordinary", {"rows": 5, "entering": 64, "outputs": 96}),
        Case("without bias", "ordinary", {"rows": 8, "entering": 48, "outputs": 64, "bias": False}),
        Case("odd sizes", "odd", {"rows": 7, "entering": 37, "outputs": 83}),
        Case("many rows", "odd", {"rows": 29, "entering": 21, "outputs": 45}),
        Case("one row", "edge", {"rows": 1, "entering": 24, "outputs": 33}),
        Case("one output", "edge", {"rows": 3, "entering": 10, "outputs": 1}),
        Case("one input", "edge", {"rows": 2, "entering": 1, "outputs": 17}),
        # Speech2Text's head with five beams, and a map of Kyutai STT's decoder for one stream.
        Case("speech2text head", "model", {"rows": 5, "entering": 256, "outputs": 10000, "bias": False}),
        Case("kyutai one stream", "model", {"rows": 1, "entering": 2048, "outputs": 6144, "bias": False}),
    ),
    cost=_cost,
    padding=_padding,
    batched=("x",),
    vary=_vary,
    dtypes=(torch.float32,),
)
