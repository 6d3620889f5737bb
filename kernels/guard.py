"""Memory with NaN around it, to show what a kernel reads and writes beyond its tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

BAND = 4096
"""Elements before and behind a banded tensor; a multiple of any alignment."""


def poison(dtype: torch.dtype) -> float | int:
    """What no result may contain: NaN, or the largest integer."""
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max


class Banded:
    """A tensor of the given shape and strides, itself poison, with bands of poison around it."""

    def __init__(self, shape: Sequence[int], strides: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        span = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        self.buffer = torch.full((2 * BAND + span,), poison(dtype), dtype=dtype, device=device)
        self.tensor = self.buffer.as_strided(shape, strides, BAND)

    @classmethod
    def copy(cls, tensor: Tensor) -> Banded:
        """A banded copy, of the same shape and strides."""
        banded = cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        banded.tensor.copy_(tensor)
        return banded

    def intact(self) -> bool:
        """Whether nothing was written into the bands."""
        bands = torch.cat([self.buffer[:BAND], self.buffer[-BAND:]])
        return bool((bands.float().isnan() if bands.is_floating_point() else bands == poison(bands.dtype)).all())


class Written:
    """A copy of a tensor for an op to write into, with copies of what lies around and between its elements."""

    def __init__(self, original: Tensor) -> None:
        self._original = original
        storage = original.untyped_storage().clone()
        self.tensor = original.new_empty(0).set_(storage, original.storage_offset(), original.shape, original.stride())

    def result(self) -> Tensor:
        """What the op has left in the tensor."""
        return self.tensor.clone(memory_format=torch.contiguous_format)

    def intact(self) -> bool:
        """Whether nothing was written but the tensor's elements. Undoes what was written into these."""
        self.tensor.copy_(self._original)
        return torch.equal(_memory(self._original), _memory(self.tensor))


def _memory(tensor: Tensor) -> Tensor:
    """The bytes of the storage that a tensor is a view of."""
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


class Allocations(TorchFunctionMode):
    """Within the block, every tensor that Python code allocates lies between bands of poison."""

    _factories = (torch.empty, torch.empty_like, torch.empty_strided, torch.Tensor.new_empty)
    _filled = (torch.zeros, torch.zeros_like, torch.Tensor.new_zeros, torch.ones, torch.full, torch.Tensor.new_full)

    def __init__(self) -> None:
        super().__init__()
        self.made: list[Banded] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in self._factories + self._filled or result.numel() == 0:
            return result
        banded = Banded(result.shape, result.stride(), result.dtype, result.device)
        if func in self._filled:
            banded.tensor.copy_(result)
        self.made.append(banded)
        return banded.tensor


def strided(tensor: Tensor) -> Tensor:
    """The same values in a view with holes between elements and an odd offset."""
    if tensor.dim() == 0:
        return tensor
    wide = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 3), poison(tensor.dtype)).to(tensor)
    view = wide[..., 1 : 1 + 2 * tensor.shape[-1] : 2]
    return view.copy_(tensor)


def transposed(tensor: Tensor) -> Tensor:
    """The same values with the axes laid out in memory in reverse order."""
    axes = tuple(reversed(range(tensor.dim())))
    return tensor.permute(axes).contiguous().permute(axes)
