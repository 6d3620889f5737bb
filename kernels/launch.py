"""What the launchers of Triton kernels share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Make the tensor's GPU the current one, where Triton launches; nothing to do for the interpreter's CPU tensors."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def as_rows(tensor: Tensor) -> Tensor:
    """The tensor as a matrix (rows, last axis) whose rows are dense, a view where its strides allow it.

    One row stride in place of one per axis: it does not depend on the number of rows, so that Triton may specialise
    on it (and load vectors) without compiling again for another length.
    """
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
