"""The record of residual_rms_norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.residual_rms_norm import residual_rms_norm
from fastspeech.kernels.spec import Case, Cost, OpSpec


def _inputs(
    dtype: torch.dtype, generator: torch.Generator, shape: tuple[int, ...], first: bool = False, size: float = 1.0
) -> dict[str, Any]:
    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    return {
        "x": (size * normal(*shape)).to(dtype),
        "delta": None if first else (size * normal(*shape)).to(dtype),
        "weight": (1 + 0.5 * normal(shape[-1])).to(dtype),
        "eps": 1e-5,
    }


def _cost(itemsize: int, shape: tuple[int, ...], first: bool = False, size: float = 1.0) -> Cost:
    values = torch.Size(shape).numel()
    # Sum 1, square and mean 2, normalising 2.
    return Cost(bytes=itemsize * ((3 if first else 4) * values + shape[-1]), flops=(4 if first else 5) * values)


def _vary(shape: Mapping[str, Any], rows: int, length: int) -> dict[str, Any]:
    # A step stays a step.
    batch, *frames, features = shape["shape"]
    return {**shape, "shape": (batch + rows, *(size + length if size > 1 else size for size in frames), features)}


SPEC = OpSpec(
    name="residual_rms_norm",
    summary="x + delta and its RMSNorm",
    call=residual_rms_norm,
    inputs=_inputs,
    cases=(
        Case("short", "ordinary", {"shape": (2, 16, 64)}),
        Case("four axes", "ordinary", {"shape": (2, 3, 5, 64)}),
        Case("the first norm", "ordinary", {"shape": (2, 9, 96), "first": True}),
        # The mean square is a tenth of eps.
        Case("next to nothing", "ordinary", {"shape": (3, 128), "size": 1e-3}),
        Case("odd sizes", "odd", {"shape": (3, 37, 83)}),
        Case("several warps a row", "odd", {"shape": (5, 1291)}),
        Case("one row", "edge", {"shape": (1, 1, 40)}),
        Case("one feature", "edge", {"shape": (3, 1), "first": True}),
        Case("one tile", "edge", {"shape": (16, 128)}),
        Case("the widest row", "edge", {"shape": (2, 16384)}),
        # A step of Kyutai STT 2.6B on 64 streams, and a minute of one stream given at once.
        Case("kyutai step", "model", {"shape": (64, 1, 2048)}),
        Case("kyutai first norm", "model", {"shape": (64, 1, 2048), "first": True}),
        Case("kyutai prefill", "model", {"shape": (1, 750, 2048)}),
    ),
    cost=_cost,
    batched=("x", "delta"),
    vary=_vary,
)
