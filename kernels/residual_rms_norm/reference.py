"""A residual sum and its RMSNorm, in plain PyTorch."""

import torch
from torch import Tensor


def residual_rms_norm(x: Tensor, delta: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x.clone() if delta is None else x + delta
    wide = total.to(torch.promote_types(total.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight
    return total, normed.to(x.dtype)
