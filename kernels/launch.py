"""What the launchers of Triton kernels share."""

from __future__ import annotations

import math
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


def unit(*tensors: Tensor) -> int:
    """How many elements, at most those of 16 bytes, divide every stride but the last axis's.

    A kernel that is given its strides in these units sees that they are multiples, and loads vectors, whatever sizes
    they follow from. Left to itself Triton looks at each stride, and compiles for what it finds.
    """
    strides = (pair for t in tensors for pair in zip(t.shape[:-1], t.stride()[:-1], strict=True))
    return math.gcd(16 // min(t.element_size() for t in tensors), *(stride for size, stride in strides if size > 1))
