"""residual_rms_norm: x + delta and its RMSNorm, reading each input once."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspeech.kernels import checks
from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op
from fastspeech.kernels.residual_rms_norm.reference import residual_rms_norm as _reference


def _fake(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = torch.empty_like(x, memory_format=torch.contiguous_format)
    return total, torch.empty_like(total)


def _triton_limits(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> str | None:
    if x.element_size() > 4:
        return "float64 is served by the reference"
    if x.shape[-1] > 16384:
        return f"{x.shape[-1]} features, at most 16384 fit one program"
    return None


def _backward_limits(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> str | None:
    if x.shape[-1] > 4096:
        return f"{x.shape[-1]} features, at most 4096 fit the registers of one program with their gradients"
    return None


_op = Op(
    _reference,
    _fake,
    (
        Implementation(
            "triton",
            "fastspeech.kernels.residual_rms_norm.triton",
            _triton_limits,
            backward="fastspeech.kernels.residual_rms_norm.triton_backward",
            backward_limits=_backward_limits,
        ),
    ),
)


def residual_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The residual sum that leaves one sublayer and the normalised input of the next, where norms have no mean.

    total = x + delta; normed = total / sqrt(mean(total^2) + eps) * weight over the last axis (Zhang and Sennrich
    2019). The mean, the quotient and the product with the weight are float32, and normed is rounded once.

    Args:
        x: (..., features).
        delta: as x; None in front of the first sublayer, where total is a copy of x.
        weight: (features,).

    Returns:
        (total, normed), both in x's shape and dtype, contiguous.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.
    """
    if delta is not None:
        checks.shape("delta", delta, tuple(x.shape), "x's shape")
    checks.shape("weight", weight, (x.shape[-1],), "(features,)")
    checks.floating(x=x, delta=delta, weight=weight)
    return _op(x, delta, weight, eps)
