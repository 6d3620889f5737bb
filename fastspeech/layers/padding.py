"""Clearing what lies behind the ends of the rows of a batch."""

import torch
from torch import Tensor


def clear_padding_(x: Tensor, lengths: Tensor, dim: int) -> Tensor:
    """Set x (B, ...) to 0, in place, at and behind lengths (B,) along axis `dim`. Returns x."""
    # A GPU would have to be waited for to tell the shortest row.
    start = int(lengths.min()) if x.device.type == "cpu" else 0
    tail = x.narrow(dim, start, x.shape[dim] - start)
    padding = torch.arange(start, x.shape[dim], device=x.device) >= lengths[:, None]
    shape = [len(lengths)] + [1] * (x.dim() - 1)
    shape[dim] = tail.shape[dim]
    tail.masked_fill_(padding.view(shape), 0)
    return x
