"""The record of residual_layer_norm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.residual_layer_norm import residual_layer_norm
from fastspeech.kernels.spec import Case, Cost, OpSpec


def _inputs(
    dtype: torch.dtype,
    generator: torch.Generator,
    shape: tuple[int, ...],
    scale: float,
    bias: bool = True,
    mean: float = 0.0,
) -> dict[str, Any]:
    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    features = shape[-1]
    return {
        "x": (normal(*shape) + mean).to(dtype),
        "delta": normal(*shape).to(dtype),
        "weight": (1 + 0.5 * normal(features)).to(dtype),
        "bias": normal(features).to(dtype) if bias else None,
        "scale": scale,
        "eps": 1e-5,
    }


def _cost(itemsize: int, shape: tuple[int, ...], scale: float, bias: bool = True, mean: float = 0.0) -> Cost:
    features = shape[-1]
    values = torch.Size(shape).numel()
    # Scaled sum 2, mean 1, centring 1, variance 2, normalising 3.
    return Cost(bytes=itemsize * (4 * values + (1 + bias) * features), flops=9 * values)


def _vary(shape: Mapping[str, Any], rows: int, length: int) -> dict[str, Any]:
    batch, *frames, features = shape["shape"]
    return {**shape, "shape": (batch + rows, *(size + length for size in frames), features)}


SPEC = OpSpec(
    name="residual_layer_norm",
    summary="x + scale * delta and its LayerNorm",
    call=residual_layer_norm,
    inputs=_inputs,
    cases=(
        Case("short", "ordinary", {"shape": (2, 16, 64), "scale": 0.5}),
        Case("no bias", "ordinary", {"shape": (2, 9, 96), "scale": 1.0, "bias": False}),
        Case("four axes", "ordinary", {"shape": (2, 3, 5, 64), "scale": 0.5}),
        # The variance is 1e-4 of the squared mean: a one-pass variance would lose half its digits.
        Case("a large mean", "ordinary", {"shape": (4, 256), "scale": 0.5, "mean": 100.0}),
        Case("odd sizes", "odd", {"shape": (3, 37, 83), "scale": 0.5}),
        Case("several warps a row", "odd", {"shape": (5, 1291), "scale": 1.0}),
        Case("one row", "edge", {"shape": (1, 1, 40), "scale": 0.5}),
        Case("one feature", "edge", {"shape": (3, 1), "scale": 0.5}),
        Case("one tile", "edge", {"shape": (16, 128), "scale": 1.0}),
        Case("the widest row", "edge", {"shape": (2, 16384), "scale": 1.0}),
        # Cohere ASR's encoder at two longest clips; Speech2Text's width, whose tiles hold several rows.
        Case("cohere 35 s", "model", {"shape": (2, 438, 1280), "scale": 0.5}),
        Case("speech2text 30 s", "model", {"shape": (1, 750, 256), "scale": 1.0}),
    ),
    cost=_cost,
    batched=("x", "delta"),
    vary=_vary,
)
