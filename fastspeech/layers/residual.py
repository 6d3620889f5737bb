"""The step from one sublayer to the next of a pre-norm residual network."""

from torch import Tensor, nn

from fastspeech.kernels import residual_layer_norm


def add_and_norm(x: Tensor, delta: Tensor, norm: nn.LayerNorm, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """x + scale * delta, and `norm` of it."""
    return residual_layer_norm(x, delta, norm.weight, norm.bias, scale, norm.eps)
