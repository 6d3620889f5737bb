"""Mean and variance normalisation of features over the valid frames of each row, in plain PyTorch."""

import torch
from torch import Tensor


def cmvn(features: Tensor, lengths: Tensor, ddof: int, eps: float, variance_floor: float) -> Tensor:
    frames = torch.arange(features.shape[1], device=features.device)
    padding = (frames >= lengths[:, None])[..., None]
    x = features.masked_fill(padding, 0)
    count = lengths.to(x.dtype)[:, None, None]
    centred = (x - x.sum(1, keepdim=True) / count.clamp(min=1)).masked_fill(padding, 0)
    variance = centred.square().sum(1, keepdim=True) / (count - ddof).clamp(min=1)
    variance = variance.clamp(min=variance_floor)
    # sqrt has no derivative at 0, where a feature is constant; the result there is 0 whatever the deviation.
    constant = variance == 0
    deviation = variance.masked_fill(constant, 1).sqrt().masked_fill(constant, 0)
    return centred / (deviation + eps)
