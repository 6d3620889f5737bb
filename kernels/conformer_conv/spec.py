"""The record of conformer_conv."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.conformer_conv import conformer_conv
from fastspeech.kernels.spec import Case, Cost, OpSpec


def _inputs(
    dtype: torch.dtype,
    generator: torch.Generator,
    batch: int,
    frames: int,
    channels: int,
    taps: int,
    lengths: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "x": normal(batch, frames, 2 * channels).to(dtype),
        "weight": (normal(channels, taps) * taps**-0.5).to(dtype),
        "bias": normal(channels).to(dtype),
        "lengths": None if lengths is None else torch.tensor(lengths),
    }


def _padding(x: Tensor, lengths: Tensor | None, **rest: Any) -> dict[str, Tensor]:
    if lengths is None:
        return {}
    return {"x": (torch.arange(x.shape[1]) >= lengths[:, None])[..., None]}


def _cost(
    itemsize: int, batch: int, frames: int, channels: int, taps: int, lengths: tuple[int, ...] | None = None
) -> Cost:
    values = batch * frames * channels
    # x is twice as wide as the output; the two sigmoids and the two products with them count one flop each.
    return Cost(bytes=itemsize * (3 * values + channels * (taps + 1)), flops=values * (2 * taps + 4))


SPEC = OpSpec(
    name="conformer_conv",
    summary="GLU, padding mask, depthwise convolution with folded BatchNorm, SiLU",
    call=conformer_conv,
    inputs=_inputs,
    cases=(
        Case("short", "ordinary", {"batch": 2, "frames": 32, "channels": 32, "taps": 9, "lengths": (32, 20)}),
        Case("full rows", "ordinary", {"batch": 2, "frames": 24, "channels": 16, "taps": 9}),
        Case("31 taps", "ordinary", {"batch": 1, "frames": 48, "channels": 16, "taps": 31, "lengths": (40,)}),
        Case("odd sizes", "odd", {"batch": 3, "frames": 37, "channels": 21, "taps": 7, "lengths": (37, 5, 19)}),
        Case("odd tiles", "odd", {"batch": 2, "frames": 71, "channels": 83, "taps": 5, "lengths": (70, 3)}),
        Case("one frame", "edge", {"batch": 2, "frames": 1, "channels": 8, "taps": 9, "lengths": (1, 0)}),
        Case("below the taps", "edge", {"batch": 2, "frames": 3, "channels": 8, "taps": 9, "lengths": (3, 1)}),
        Case("an empty row", "edge", {"batch": 3, "frames": 17, "channels": 16, "taps": 9, "lengths": (17, 0, 1)}),
        Case("one tap", "edge", {"batch": 1, "frames": 16, "channels": 16, "taps": 1, "lengths": (16,)}),
        Case("one channel", "edge", {"batch": 1, "frames": 16, "channels": 1, "taps": 3}),
        # Cohere ASR's encoder at its longest clip, and the 1024-channel width of smaller Parakeet encoders.
        Case("cohere 35 s", "model", {"batch": 2, "frames": 438, "channels": 1280, "taps": 9, "lengths": (438, 301)}),
        Case("parakeet 10 s", "model", {"batch": 1, "frames": 126, "channels": 1024, "taps": 9}),
    ),
    cost=_cost,
    padding=_padding,
    batched=("x", "lengths"),
)
