"""residual_layer_norm: x + scale * delta and its LayerNorm, reading each input once."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspeech.kernels import checks
from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op
from fastspeech.kernels.residual_layer_norm.reference import residual_layer_norm as _reference


def _fake(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, scale: float, eps: float
) -> tuple[Tensor, Tensor]:
    total = torch.empty_like(x, memory_format=torch.contiguous_format)
    return total, torch.empty_like(total)


def _triton_limits(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, scale: float, eps: float
) -> str | None:
    if x.element_size() > 4:
        return "float64 is served by the reference"
    if x.shape[-1] > 16384:
        return f"{x.shape[-1]} features, at most 16384 fit one program"
    return None


def _backward_limits(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, scale: float, eps: float
) -> str | None:
    if x.shape[-1] > 4096:
        return f"{x.shape[-1]} features, at most 4096 fit the registers of one program with their gradients"
    return None


_op = Op(
    _reference,
    _fake,
    (
        Implementation(
            "triton",
            "fastspeech.kernels.residual_layer_norm.triton",
            _triton_limits,
            backward="fastspeech.kernels.residual_layer_norm.triton_backward",
            backward_limits=_backward_limits,
        ),
    ),
)


def residual_layer_norm(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, scale: float = 1.0, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """The residual sum that leaves one sublayer and the normalised input of the next.

    total = x + scale * delta; normed = (total - mean) / sqrt(var + eps) * weight + bias over the last axis, with the
    population variance (Ba et al. 2016).

    Args:
        x, delta: (..., features).
        weight: (features,); bias: (features,) or None.
        scale: factor of delta (0.5 for the half steps of a macaron layer).

    Returns:
        (total, normed), both in x's shape and dtype, contiguous.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.
    """
    checks.shape("delta", delta, tuple(x.shape), "x's shape")
    checks.shape("weight", weight, (x.shape[-1],), "(features,)")
    if bias is not None:
        checks.shape("bias", bias, (x.shape[-1],), "(features,)")
    checks.floating(x=x, delta=delta, weight=weight, bias=bias)
    return _op(x, delta, weight, bias, scale, eps)
