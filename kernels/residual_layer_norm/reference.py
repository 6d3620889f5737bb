"""A scaled residual sum and its LayerNorm, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def residual_layer_norm(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, scale: float, eps: float
) -> tuple[Tensor, Tensor]:
    total = torch.add(x, delta, alpha=scale)
    return total, F.layer_norm(total, weight.shape, weight, bias, eps)
