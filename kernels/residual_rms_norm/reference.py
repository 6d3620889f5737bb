"""A residual sum and its RMSNorm, in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor


def residual_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x.clone() if delta is None else x + delta
    # Of narrow numbers it computes in float32, and rounds once.
    return total, F.rms_norm(total, weight.shape, weight, eps)
