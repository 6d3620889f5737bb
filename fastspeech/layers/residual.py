"""The step from one sublayer to the next of a pre-norm residual network."""

from collections.abc import Callable

from torch import Tensor, nn

import fastspeech.kernels.residual_layer_norm  # noqa: F401 (registers the op)
from fastspeech.kernels.op import OPS

_residual_layer_norm = OPS["residual_layer_norm"]
"""Without the checks of arguments, which fit by construction here and cost a step on the CPU as much as the sum."""


def add_and_norm(norm: nn.LayerNorm, scale: float = 1.0) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The function of (x, delta) that gives x + scale * delta and `norm` of it."""
    weight, bias, eps = norm.weight, norm.bias, norm.eps

    def apply(x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        if not x.dtype == delta.dtype == weight.dtype:
            # Autocast: sublayers are narrower than parameters, and it widens what a norm is given.
            total = x + scale * delta
            return total, norm(total)
        return _residual_layer_norm(x, delta, weight, bias, scale, eps)

    return apply
