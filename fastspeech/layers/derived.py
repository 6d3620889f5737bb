"""Weights derived from parameters for inference: packed, folded or projected.

They are no part of a model's state: nothing here is a parameter or a buffer, so nothing is saved.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn


class Derived:
    """A value kept until a tensor it was computed from is replaced or written to.

    Writes are seen through the tensors' version counters, which optimisers, `load_state_dict` and every in-place
    operation on the tensor itself advance. A write through `tensor.data` is seen only after `train()`, `eval()` or
    `to()` of the `DerivingModule` that holds this.
    """

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        """Forget the value."""
        self._seen: list[tuple[Callable[[], Tensor | None], int, int]] | None = None
        self._value: Any = None

    def get(self, sources: Sequence[Tensor], compute: Callable[[], Any]) -> Any:
        """The value of `compute()`, which depends on `sources` alone and runs only where they changed."""
        if self._seen is None or not all(map(_unchanged, sources, self._seen)):
            # What is made in inference mode could not be used outside it.
            with torch.inference_mode(False), torch.no_grad():
                self._value = compute()
            self._seen = [(weakref.ref(source), source.data_ptr(), _version(source)) for source in sources]
        return self._value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()


def _unchanged(source: Tensor, seen: tuple[Callable[[], Tensor | None], int, int]) -> bool:
    # The object as well as the address: memory that was freed is given out again.
    return seen[0]() is source and seen[1] == source.data_ptr() and seen[2] == _version(source)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


class PackedLinear(Derived):
    """Several linear maps of one input, as one matrix product.

    Packing moves the parameters of the maps into one matrix and makes each a view of its rows: no memory is held twice,
    a write to a parameter is a write to the matrix, and `state_dict` stays as it is. What tears them apart again
    (`Module.to`, assigning a parameter) is seen by `pack`, which then packs anew.

    Attributes:
        weight: (sum of outputs, in); bias: (sum of outputs,), or None where the maps have none. Set by `pack`.
    """

    weight: Tensor | None
    bias: Tensor | None

    def drop(self) -> None:
        """Forget the matrix; the parameters keep their memory."""
        self.weight = self.bias = None

    def pack(self, maps: Sequence[nn.Linear]) -> None:
        """Make `weight` and `bias` those of `maps`, all of which have a bias or none."""
        self.weight = _pack(self.weight, [linear.weight for linear in maps])
        biases = [linear.bias for linear in maps if linear.bias is not None]
        self.bias = _pack(self.bias, biases) if biases else None

    def __call__(self, x: Tensor, maps: Sequence[nn.Linear]) -> Tensor:
        """The outputs of `maps` for x (..., in), concatenated over the last axis.

        With gradients the maps run one by one, and nothing is packed.
        """
        if torch.is_grad_enabled():
            return torch.cat([linear(x) for linear in maps], dim=-1)
        self.pack(maps)
        return nn.functional.linear(x, self.weight, self.bias)


def _pack(packed: Tensor | None, parts: Sequence[Tensor]) -> Tensor:
    if packed is not None and packed.dtype == parts[0].dtype:
        start = packed.data_ptr()
        for part in parts:
            if part.data_ptr() != start:
                break
            start += part.numel() * part.element_size()
        else:
            return packed
    with torch.inference_mode(False), torch.no_grad():
        packed = torch.cat([part.detach() for part in parts])
        for part, rows in zip(parts, packed.split([part.shape[0] for part in parts]), strict=True):
            part.data = rows
    return packed


class DerivingModule(nn.Module):
    """A module that holds `Derived` values as attributes: `train()`, `eval()` and `to()` drop them."""

    def train(self, mode: bool = True) -> Self:
        self._drop()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._drop()
        return super()._apply(fn, recurse)

    def _drop(self) -> None:
        for value in vars(self).values():
            if isinstance(value, Derived):
                value.drop()
