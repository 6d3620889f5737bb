"""cmvn: cepstral mean and variance normalisation over the valid frames of each row."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspeech.kernels import checks
from fastspeech.kernels.cmvn.reference import cmvn as _reference
from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op


def _fake(features: Tensor, lengths: Tensor, ddof: int, eps: float, variance_floor: float) -> Tensor:
    return torch.empty_like(features, memory_format=torch.contiguous_format)


def _limits(features: Tensor, lengths: Tensor, ddof: int, eps: float, variance_floor: float) -> str | None:
    if features.element_size() > 4:
        return "float64 is served by the reference"
    return None


_op = Op(
    _reference,
    _fake,
    (
        Implementation("triton", "fastspeech.kernels.cmvn.triton", _limits),
        Implementation("cuda", "fastspeech.kernels.cmvn.cuda", _limits, on_cpu=True, on_cuda=False),
    ),
)


def cmvn(
    features: Tensor, lengths: Tensor, ddof: int = 1, eps: float = 1e-5, variance_floor: float = 0.0
) -> Tensor:
    """Normalise each feature over the valid frames of its row.

    mean and var are taken over t < lengths[b], var = sum((x - mean)^2) / max(lengths[b] - ddof, 1); the result is
    (x - mean) / (sqrt(max(var, variance_floor)) + eps) there and exactly 0 behind. Cohere ASR uses ddof 1, eps 1e-5
    (NeMo's per-feature normalisation); Speech2Text uses ddof 0, eps 0 and a floor, as fairseq's utterance CMVN.

    Args:
        features: (batch, frames, features).
        lengths: (batch,) int32 or int64, valid frames of each row.

    Returns:
        (batch, frames, features), contiguous, in the dtype of `features`. One valid frame gives 0.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.
    """
    checks.rank("features", features, 3, "(batch, frames, features)")
    checks.floating(features=features)
    checks.lengths(lengths, features.shape[0], features.device)
    if eps == 0 and variance_floor == 0:
        raise ValueError("a constant feature would be divided by 0: give eps or variance_floor")
    return _op(features, lengths, ddof, eps, variance_floor)
