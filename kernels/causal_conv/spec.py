"""The record of causal_conv."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.causal_conv import causal_conv
from fastspeech.kernels.spec import Case, Cost, OpSpec


def _inputs(
    dtype: torch.dtype,
    generator: torch.Generator,
    batch: int,
    frames: int,
    channels: int,
    outputs: int,
    taps: int,
    stride: int = 1,
    elu: bool = True,
    bias: bool = True,
    residual: bool = False,
) -> dict[str, Any]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "x": normal(batch, frames, channels).to(dtype),
        "state": normal(batch, taps - stride, channels).to(dtype),
        "weight": (normal(outputs, taps * channels) * (taps * channels) ** -0.5).to(dtype),
        "bias": normal(outputs).to(dtype) if bias else None,
        "residual": normal(batch, frames // stride, outputs).to(dtype) if residual else None,
        "stride": stride,
        "elu": elu,
    }


def _cost(
    itemsize: int,
    batch: int,
    frames: int,
    channels: int,
    outputs: int,
    taps: int,
    stride: int = 1,
    elu: bool = True,
    bias: bool = True,
    residual: bool = False,
) -> Cost:
    width, made = taps * channels, batch * (frames // stride) * outputs
    read = batch * (frames + taps - stride) * channels + outputs * (width + bias) + residual * made
    written = made + batch * (taps - stride) * channels
    # ELU is an exponential and a subtraction.
    flops = 2 * made * width + (bias + residual) * made + 2 * elu * batch * frames * channels
    return Cost(bytes=itemsize * (read + written), flops=flops)


def _vary(shape: Mapping[str, Any], rows: int, length: int) -> dict[str, Any]:
    stride = shape.get("stride", 1)
    return {**shape, "batch": shape["batch"] + rows, "frames": max(shape["frames"] + length * stride, stride)}


def _case(name: str, kind: Any, batch: int, frames: int, channels: int, outputs: int, taps: int, **rest: Any) -> Case:
    sizes = {"batch": batch, "frames": frames, "channels": channels, "outputs": outputs, "taps": taps}
    return Case(name, kind, {**sizes, **rest})


SPEC = OpSpec(
    name="causal_conv",
    summary="ELU, causal convolution that continues from its state, residual sum",
    call=causal_conv,
    inputs=_inputs,
    cases=(
        _case("strided", "ordinary", 2, 32, 16, 32, 8, stride=4),
        _case("three taps", "ordinary", 2, 24, 32, 16, 3),
        _case("a residual", "ordinary", 2, 20, 16, 32, 2, residual=True),
        _case("on samples", "ordinary", 2, 64, 1, 16, 7, elu=False),
        _case("no bias, no ELU", "ordinary", 3, 2, 64, 64, 4, stride=2, elu=False, bias=False),
        _case("odd sizes", "odd", 3, 35, 21, 37, 10, stride=5),
        _case("odd tiles", "odd", 2, 83, 19, 71, 3, residual=True),
        _case("one tap", "odd", 2, 27, 19, 35, 1, residual=True),
        _case("taps that overlap unevenly", "odd", 1, 21, 13, 9, 5, stride=3),
        _case("large filters", "odd", 1, 10, 103, 301, 10, stride=5),
        _case("one output", "edge", 1, 8, 16, 24, 16, stride=8),
        _case("less than the past", "edge", 2, 1, 16, 16, 7),
        _case("one channel, one output", "edge", 1, 16, 1, 1, 3),
        _case("nothing past", "edge", 2, 12, 16, 16, 4, stride=4),
        # Mimi's encoder, a frame of 8 streams: its longest convolution, its widest, and the one with most windows.
        _case("mimi on samples", "model", 8, 1920, 1, 64, 7, elu=False),
        _case("mimi residual", "model", 8, 1920, 64, 32, 3),
        _case("mimi residual sum", "model", 8, 1920, 32, 64, 1, residual=True),
        _case("mimi strided", "model", 8, 480, 128, 256, 10, stride=5),
        _case("mimi widest", "model", 8, 16, 512, 1024, 16, stride=8),
    ),
    cost=_cost,
    batched=("x", "state", "residual"),
    vary=_vary,
)
