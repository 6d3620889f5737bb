"""The step from one sublayer to the next of a pre-norm residual network."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from fastspeech.kernels import residual_layer_norm


def add_and_norm(norm: nn.LayerNorm, scale: float = 1.0) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The function of (x, delta) that gives x + scale * delta and `norm` of it."""
    return partial(residual_layer_norm, weight=norm.weight, bias=norm.bias, scale=scale, eps=norm.eps)
