"""The step from one sublayer to the next of a pre-norm residual network."""

from collections.abc import Callable

from torch import Tensor, nn

from fastspeech.kernels import residual_layer_norm


def add_and_norm(norm: nn.LayerNorm, scale: float = 1.0) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The function of (x, delta) that gives x + scale * delta and `norm` of it."""
    weight, bias, eps = norm.weight, norm.bias, norm.eps

    def apply(x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        if not x.dtype == delta.dtype == weight.dtype:
            # Autocast: sublayers are narrower than parameters, and it widens what a norm is given.
            total = x + scale * delta
            return total, norm(total)
        return residual_layer_norm(x, delta, weight, bias, scale, eps)

    return apply
