"""What lies behind the ends of the rows of a batch."""

import torch
from torch import Tensor


def readable(x: Tensor) -> bool:
    """Whether the host may look at values of x at once: a GPU would have to be waited for, and a graph that is being
    traced has none."""
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """(B, frames) bool, true before lengths (B,)."""
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def clear_padding_(x: Tensor, lengths: Tensor, dim: int) -> Tensor:
    """Set x (B, ...) to 0, in place, at and behind lengths (B,) along axis `dim`. Returns x."""
    start = int(lengths.min()) if readable(lengths) else 0
    tail = x.narrow(dim, start, x.shape[dim] - start)
    padding = torch.arange(start, x.shape[dim], device=x.device) >= lengths[:, None]
    shape = [x.shape[0]] + [1] * (x.dim() - 1)
    shape[dim] = tail.shape[dim]
    tail.masked_fill_(padding.view(shape), 0)
    return x
