"""Values derived from parameters for inference, such as packed, folded or projected weights.

They are no part of a model's state: nothing here is a parameter or a buffer, so nothing is saved.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn


class Kept:
    """What a `DerivingModule` keeps beside its parameters. Copies and pickles of the module begin without it."""

    follows_writes: ClassVar[bool] = False
    """Whether it shares the memory of the parameters it comes from, and so changes with them."""

    def drop(self) -> None:
        """Forget it."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()


class Derived(Kept):
    """A value kept until a tensor it was computed from is replaced or written to.

    Writes are seen through the tensors' version counters, which optimisers, `load_state_dict` and every in-place
    operation on the tensor itself advance. A write through `tensor.data` is seen only after `train()`, `eval()` or
    `to()` of the `DerivingModule` that holds this. In a graph that is traced the value is computed at each run.
    """

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        self._kept: tuple[Any, list[Seen]] | None = None

    def get(self, sources: Sequence[Tensor], compute: Callable[[], Any]) -> Any:
        """The value of `compute()`, which depends on `sources` alone and runs only where they changed."""
        if torch.compiler.is_compiling():
            with torch.no_grad(), torch.autocast(sources[0].device.type, enabled=False):
                return compute()
        kept = self._kept
        if kept is None or not all(map(unchanged, sources, kept[1])):
            # What is made in inference mode could not be used outside it, what autocast rounds not without it.
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(sources[0].device.type, enabled=False):
                value = compute()
            # In one piece, as another thread may ask with other sources at any time.
            kept = self._kept = value, [seen(source) for source in sources]
        return kept[0]


Seen = tuple[Callable[[], Tensor | None], int, int]
"""A tensor as it was: the object, its address and its version."""


def seen(source: Tensor) -> Seen:
    """A tensor as it is."""
    return weakref.ref(source), source.data_ptr(), _version(source)


def unchanged(source: Tensor, before: Seen) -> bool:
    """Whether this is the tensor seen before, neither replaced nor written to."""
    # The object as well as the address: memory that was freed is given out again.
    return before[0]() is source and before[1] == source.data_ptr() and before[2] == _version(source)


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


class DerivingModule(nn.Module):
    """A module with `Kept` attributes, which drops them when they may be wrong or in the way: all in `to()`, those that
    do not follow writes in `train()` and `eval()`."""

    def train(self, mode: bool = True) -> Self:
        for value in vars(self).values():
            if isinstance(value, Kept) and not value.follows_writes:
                value.drop()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for value in vars(self).values():
            if isinstance(value, Kept):
                value.drop()
        return super()._apply(fn, recurse)
