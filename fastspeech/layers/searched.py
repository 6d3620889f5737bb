"""Searches of `generate` on a device, over pages and recorded steps that stay from call to call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastspeech.generation.graphs import Turns
from fastspeech.generation.pages import Paged, PagedCache, PagePool
from fastspeech.layers import paged
from fastspeech.layers.derived import Kept
from fastspeech.layers.page_reader import PageReader
from fastspeech.layers.seated import PAGE_SIZE, roomy


class PagedBatch(Paged):
    """The cache of a batch until it is freed, each utterance on pages of its own.

    Attributes:
        rows_per_input: hypotheses of each utterance.
    """

    def __init__(self, caches: Sequence[PagedCache], reader: PageReader, turns: Turns) -> None:
        self._caches, self._reader, self._turns = list(caches), reader, turns
        self.rows_per_input = caches[0].rows_per_input
        self._device = caches[0].pool.keys.device

    @property
    def length(self) -> int:
        """The tokens that each row has read."""
        return self._caches[0].length

    def read(self, input_ids: Tensor) -> Tensor:
        """Logits (rows, vocabulary) after the last of further tokens (rows, n) of all rows, which advance."""
        with self._turns.take(self._device):
            return self._reader.read(input_ids, self._caches)

    def record(self) -> None:
        """Record the steps of as many rows, and of what they shrink to as texts end."""
        with self._turns.take(self._device):
            self._reader.record(self._caches)

    def follow(self, sources: Sequence[int]) -> None:
        """As `Paged.follow`."""
        count = self.rows_per_input
        with self._turns.take(self._device):
            for first, cache in zip(range(0, len(sources), count), self._caches, strict=True):
                cache.follow([source - first for source in sources[first : first + count]])

    def keep(self, inputs: list[int]) -> None:
        """Hold only these utterances, in this order."""
        with self._turns.take(self._device):
            for left in set(range(len(self._caches))).difference(inputs):
                self._caches[left].free()
        self._caches = [self._caches[place] for place in inputs]

    def separate(self) -> None:
        """Nothing: each row has a table of its own."""

    def free(self) -> None:
        """Give all pages back."""
        with self._turns.take(self._device):
            for cache in self._caches:
                cache.free()


class Searched(Kept):
    """The pages that a model's searches run over, and the steps recorded over them.

    They are kept until the model is moved, and grow to what was needed at once. Searches of several threads go on
    beside one another, a step of one behind a step of another.

    Attributes:
        pool: the pages that there are.
        reader: reads what the searches ask for.
    """

    follows_writes = True

    def __init__(self) -> None:
        self._turns = Turns()
        self.drop()

    def drop(self) -> None:
        self.pool: PagePool | None = None
        self.reader: PageReader | None = None

    def begin(self, model: Any, encoded: Tensor, counts: Tensor | None, rows: int, most_tokens: int) -> PagedBatch:
        """The cache to decode with, of what is heard in encoded (B, frames, width).

        Args:
            model: a `WithHead`, whose pages these are.
            counts: (B,) int64, the frames of each; None where all are.
            rows: hypotheses of each utterance.
            most_tokens: that each row will have read at the end.
        """
        inputs, frames, _ = encoded.shape
        of_each = [frames] * inputs if counts is None else counts.tolist()
        pages = sum(rows * -(-most_tokens // PAGE_SIZE) + -(-count // PAGE_SIZE) for count in of_each)
        with self._turns.take(encoded.device):
            pool, reader = self._room(model, pages)
            reader.take_weights(rows * inputs)
            caches = [PagedCache(pool, rows, most_tokens, count) for count in of_each]
            try:
                paged.listen(model.model.decoder, encoded, caches)
            except BaseException:
                for cache in caches:
                    cache.free()
                raise
        return PagedBatch(caches, reader, self._turns)

    def _room(self, model: Any, pages: int) -> tuple[PagePool, PageReader]:
        """A pool with so many pages that nobody has been promised."""
        pool, reader = self.pool, self.reader
        if pool is not None and reader is not None:
            wanted = pool.reserved + pages
            if wanted <= pool.pages:
                return pool, reader
            if pool.reserved:
                with torch.inference_mode(False), torch.no_grad():
                    pool.grow(roomy(wanted))
                return pool, reader
            self.drop()  # before as much again is taken
            del pool, reader
        decoder = model.model.decoder
        weight = next(decoder.parameters())
        kind = {"page_size": PAGE_SIZE, "dtype": weight.dtype, "device": weight.device}
        with torch.inference_mode(False), torch.no_grad():
            made = PagePool(len(decoder.layers), decoder.kv_heads, decoder.head_dim, roomy(pages), **kind)
        self.pool, self.reader = made, PageReader(model, made, 1)
        return made, self.reader
