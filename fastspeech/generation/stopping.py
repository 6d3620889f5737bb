"""When sequences end, and when those that have ended leave the batch."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from .interface import StoppingCriterion


def time_limit(seconds: float) -> StoppingCriterion:
    """End all sequences `seconds` from now."""
    end = time.monotonic() + seconds
    return lambda ids, scores: time.monotonic() >= end


class CriterionList(list[StoppingCriterion]):
    """Criteria that are called together.

    Attributes:
        max_length: longest sequence, prompt included.
    """

    def __init__(self, criteria: Iterable[StoppingCriterion], eos: Sequence[int], max_length: int) -> None:
        super().__init__(criteria)
        self.max_length = max_length
        self.append(lambda ids, scores: torch.isin(ids[:, -1], ids.new_tensor(eos)))
        self.append(lambda ids, scores: ids.shape[1] >= max_length)

    def __call__(self, input_ids: torch.Tensor, scores: Any = None) -> torch.Tensor:
        """(rows,) bool: the sequences (rows, length) that one of them ends."""
        return any_met(self, input_ids, scores)


def any_met(
    criteria: Iterable[StoppingCriterion], ids: torch.Tensor, scores: Sequence[torch.Tensor] | None
) -> torch.Tensor:
    """(rows,) bool: the sequences `ids` (rows, length) that one of the criteria ends."""
    met = ids.new_zeros(ids.shape[0], dtype=torch.bool)
    for criterion in criteria:
        met |= torch.as_tensor(criterion(ids, None if scores is None else tuple(scores)), device=ids.device)
    return met


def leaving_pays(ended: int, running: int) -> bool:
    """Whether to take ended utterances out of the batch: moving the others costs a few steps of one utterance each."""
    return ended * 8 >= ended + running


def close_gaps(running: Sequence[bool]) -> list[int]:
    """The places of those that run, in an order that moves as few as possible: gaps are filled from the end."""
    count = sum(running)
    last = [place for place in range(count, len(running)) if running[place]]
    return [place if running[place] else last.pop() for place in range(count)]
