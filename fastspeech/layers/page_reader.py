"""A model that reads what searches ask for, over the pages of a pool."""

from __future__ import annotations

from collections.abc import Sequence
from operator import le
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fastspeech.generation.graphs import next_power_of_two
from fastspeech.generation.pages import PagedCache, PagePool
from fastspeech.generation.recorded import RecordedStep
from fastspeech.layers import paged
from fastspeech.layers.derived import Derived
from fastspeech.layers.relaid import Map
from fastspeech.layers.seated import reader, roomy

if TYPE_CHECKING:
    from fastspeech.layers.decoder import Step


class PageReader:
    """Reads tokens of the rows of caches on one pool: one of each by a recorded step where there are such, else as
    they come.

    Args:
        model: a `WithHead`.
        pool: of the caches.
        rows: at once, at least.

    Attributes:
        step: the recorded one; None where none was needed so far.
    """

    def __init__(self, model: Any, pool: PagePool, rows: int) -> None:
        self._model, self._pool, self._rows = model, pool, rows
        self._decoder = model.model.decoder
        self._made = Derived()
        self._functions: tuple[list[Step], Map] | None = None
        self._records = False
        self.step: RecordedStep | None = None

    def take_weights(self, rows: int) -> None:
        """Read by the weights as they are now, laid out as they are read fastest for about so many rows."""
        self._records = self._model.records(self._pool.keys.device)
        if not self._records:
            self._functions = self._model.functions(self._decoder.product(rows))
            return
        functions = self._made.get(
            self._model.decoding_parameters(), lambda: self._model.lasting_functions(self._rows)
        )
        if functions is not self._functions:
            self._functions, self.step = functions, None

    def read(self, input_ids: Tensor, caches: Sequence[PagedCache]) -> Tensor:
        """Logits (rows, vocabulary) after the last of n further tokens of all rows of these caches, which advance,
        unless an error is raised. input_ids: (rows, n) int64, the rows of one cache after those of another."""
        assert self._functions is not None
        if self._records and input_ids.shape[1] == 1:
            return self._room(caches).read(input_ids, caches)
        steps, head = self._functions
        return head(paged.read(self._decoder, steps, input_ids, caches))

    def record(self, caches: Sequence[PagedCache]) -> None:
        """Record the steps that `read` could come to need for caches such as these."""
        step = self._room(caches)
        bucket = step.bucket(sum(len(cache.tables) for cache in caches))
        while bucket:
            step.prepare(bucket)
            bucket //= 2

    def _room(self, caches: Sequence[PagedCache]) -> RecordedStep:
        """The recorded step, with room for all rows of these caches to their ends."""
        assert self._functions is not None
        rows = sum(len(cache.tables) for cache in caches)
        columns = self._pool.needed(max(cache.most_tokens for cache in caches))
        cross_columns = max(len(cache.cross_table) for cache in caches)
        held = (self._rows, 0, 0) if self.step is None else self.step.sizes
        if not all(map(le, (rows, columns, cross_columns), held)):
            if rows > held[0]:
                rows = next_power_of_two(rows)
            sizes = map(max, (rows, roomy(columns), roomy(cross_columns)), held)
            self.step = RecordedStep(reader(self._decoder, *self._functions, self._pool), self._pool, *sizes)
        assert self.step is not None
        return self.step
