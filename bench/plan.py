"""What a run is to measure, and how long it may take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Row = dict[str, Any]

Number = TypeVar("Number", int, float)

Task = tuple[str, Callable[[], Iterator[Row]]]
"""A name, by which a record knows that it was done, and what measures its rows."""


@dataclass(frozen=True)
class Plan:
    """The choices of a run.

    Attributes:
        device: what is measured.
        names: ops and models, or models' families; all where empty.
        budget_s: seconds for each timing, in which its contenders take turns.
        compiled: also what torch.compile makes of references and of transformers' models.
        longest_s: a load of a model on a CPU that is predicted to take longer is left out.
        rehearsal: everything is run, at sizes that anything can run; the times mean nothing.
    """

    device: torch.device
    names: tuple[str, ...] = ()
    budget_s: float = 1.0
    compiled: bool = True
    longest_s: float = 90.0
    rehearsal: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """That of models, and of ops that have it; a rehearsal's is a GPU's."""
        return torch.bfloat16 if self.device.type == "cuda" or self.rehearsal else torch.float32

    def wants(self, *names: str) -> bool:
        return not self.names or any(name in self.names for name in names)

    def shrunk(self, number: Number, most: Number) -> Number:
        """A batch or a length: no more than `most` in a rehearsal."""
        return min(number, most) if self.rehearsal else number
