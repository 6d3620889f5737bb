"""The record of cmvn."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.cmvn import cmvn
from fastspeech.kernels.spec import Case, Cost, OpSpec

COHERE = {"ddof": 1, "eps": 1e-5, "variance_floor": 0.0}
FAIRSEQ = {"ddof": 0, "eps": 0.0, "variance_floor": 1e-10}


def _inputs(
    dtype: torch.dtype,
    generator: torch.Generator,
    batch: int,
    frames: int,
    features: int,
    lengths: tuple[int, ...],
    mean: float = -6.0,
    spread: float = 3.0,
    **options: float,
) -> dict[str, Any]:
    x = mean + spread * torch.randn((batch, frames, features), generator=generator, dtype=torch.float64)
    return {"features": x.to(dtype), "lengths": torch.tensor(lengths), **options}


def _padding(features: Tensor, lengths: Tensor, **rest: Any) -> dict[str, Tensor]:
    return {"features": (torch.arange(features.shape[1]) >= lengths[:, None])[..., None]}


def _cost(itemsize: int, batch: int, frames: int, features: int, **rest: Any) -> Cost:
    values = batch * frames * features
    # Mean 1, variance 3, the result 2.
    return Cost(bytes=2 * itemsize * values, flops=6 * values)


SPEC = OpSpec(
    name="cmvn",
    summary="mean and variance normalisation of features over the valid frames of each row",
    call=cmvn,
    inputs=_inputs,
    cases=(
        Case("short", "ordinary", {"batch": 2, "frames": 32, "features": 16, "lengths": (32, 20), **COHERE}),
        Case("fairseq", "ordinary", {"batch": 2, "frames": 48, "features": 80, "lengths": (48, 31), **FAIRSEQ}),
        # Log-mel features of near silence: the spread is a few hundred units in the last place of the mean.
        Case(
            "quiet",
            "ordinary",
            {"batch": 1, "frames": 64, "features": 24, "lengths": (60,), "mean": -16.0, "spread": 1e-3, **COHERE},
        ),
        Case("odd sizes", "odd", {"batch": 3, "frames": 37, "features": 21, "lengths": (37, 5, 19), **COHERE}),
        Case("odd tiles", "odd", {"batch": 2, "frames": 579, "features": 19, "lengths": (577, 513), **FAIRSEQ}),
        Case("one valid frame", "edge", {"batch": 2, "frames": 9, "features": 8, "lengths": (1, 2), **COHERE}),
        Case("an empty row", "edge", {"batch": 3, "frames": 17, "features": 16, "lengths": (17, 0, 3), **COHERE}),
        Case("one frame", "edge", {"batch": 1, "frames": 1, "features": 40, "lengths": (1,), **COHERE}),
        Case("one tile", "edge", {"batch": 1, "frames": 512, "features": 8, "lengths": (512,), **COHERE}),
        # The longest clips of Cohere ASR and of Speech2Text.
        Case(
            "cohere 35 s",
            "model",
            {"batch": 2, "frames": 3501, "features": 128, "lengths": (3500, 2400), **COHERE},
        ),
        Case("speech2text 30 s", "model", {"batch": 1, "frames": 2998, "features": 80, "lengths": (2998,), **FAIRSEQ}),
    ),
    cost=_cost,
    padding=_padding,
    batched=("features", "lengths"),
)
