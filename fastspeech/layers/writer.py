"""Texts that join and leave while others are written: greedy decoding for an engine, on the device alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastspeech.generation.pages import PagedCache, PagePool, as_table
from fastspeech.generation.plan import Plan
from fastspeech.generation.seats import STEPS, Look, Read, Seats
from fastspeech.kernels import dispatch
from fastspeech.layers import paged
from fastspeech.layers.derived import Derived
from fastspeech.layers.seated import reader, roomy

if TYPE_CHECKING:
    from fastspeech.layers.decoder import Step


class Text(NamedTuple):
    """A text: `key`, what it is known by; `cache`, its own, in whose pages its frames are; prompt (1, n) int64."""

    key: Hashable
    cache: PagedCache
    prompt: Tensor
    plan: Plan


class Writer:
    """Writes texts over the pages of a pool, a few tokens of all of them at a time.

    Args:
        model: a `WithHead`.
        pool: of the caches.
        rows: texts at once.
    """

    def __init__(self, model: Any, pool: PagePool, rows: int) -> None:
        self._model, self.pool, self._rows = model, pool, rows
        self._joining: list[Text] = []
        self._at: list[Text | None] = [None] * rows
        self._decoder = model.model.decoder
        self._made = Derived()
        self._steps: list[Step] = []
        self._seats: Seats | None = None
        self._before: tuple[list[Text | None], Look, Look] | None = None
        self._seen: tuple[int, str] | None = None

    def takes(self, plan: Plan) -> bool:
        """Whether a text is written here, by its plan."""
        return self._model.sits(plan, self.pool.keys.device)

    def add(self, key: Hashable, cache: PagedCache, prompt: Tensor, plan: Plan) -> None:
        """Write a text from the next call of `write` on. Its cache has one row, which has read nothing."""
        cache.prepare(plan.max_length - 1)  # the pages of all of it: the host does not see it grow
        self._joining.append(Text(key, cache, prompt, plan))

    def remove(self, key: Hashable) -> None:
        """Forget a text, if it is here. Its pages may be taken by others from now on."""
        self._joining = [text for text in self._joining if text.key != key]
        for seat, text in enumerate(self._at):
            if text is not None and text.key == key:
                self._at[seat] = None
                self._present().leave(seat)

    def write(self) -> list[tuple[Hashable, Tensor | Exception]]:
        """Write `STEPS` tokens of each text. Returns those that were found to have ended, or failed, each with its
        tokens (length,) int64 on the host or the error; they are forgotten."""
        failed = self._join()
        taken = [seat for seat, text in enumerate(self._at) if text is not None]
        if not taken:
            self._before = None
            return failed
        seats = self._present()
        # What a step was recorded with.
        seen = self.pool.keys.data_ptr(), dispatch.backend()
        if seen != self._seen:
            seats.graphs.clear()
            self._seen = seen
        try:
            seats.run(taken[-1] + 1, STEPS)
            now = [*self._at], seats.look(), seats.look_at_texts()
        except Exception as error:
            return failed + [(text.key, error) for text in self._at if text is not None]
        self._before, before = now, self._before
        if before is None:
            return failed
        texts, told, written = before[0], before[1].known(), before[2]
        ended: list[tuple[Hashable, Tensor | Exception]] = []
        for seat, (length, limit) in enumerate(told.T.tolist()):
            text = texts[seat]
            if text is not None and text is self._at[seat] and length >= limit:
                text.cache.advance(length - 1 - text.cache.length)  # the last token is not read
                ended.append((text.key, written.known()[seat, :length]))
                self._at[seat] = None
        return failed + ended

    def _join(self) -> list[tuple[Hashable, Tensor | Exception]]:
        """Read the prompts of the texts that came, but for the last token, and let them sit down."""
        if not self._joining:
            return []
        free = [seat for seat, text in enumerate(self._at) if text is None]
        waiting, self._joining = self._joining, []
        failed: list[tuple[Hashable, Tensor | Exception]] = []
        for _, group in groupby(sorted(waiting, key=_count), _count):
            texts = list(group)
            try:
                self._sit(texts, [free.pop(0) for _ in texts])
            except Exception as error:
                failed += [(text.key, error) for text in texts]
        return failed

    def _sit(self, texts: Sequence[Text], at: Sequence[int]) -> None:
        caches, plans = [text.cache for text in texts], [text.plan for text in texts]
        longest = max(plan.max_length for plan in plans)
        tokens, frames = max(map(len, (t for c in caches for t in c.tables))), max(len(c.cross_table) for c in caches)
        steps = self._room(tokens, frames, longest, max(len(plan.eos) for plan in plans))
        prompt = torch.cat([text.prompt for text in texts])
        if prompt.shape[1] > 1:
            paged.read(self._decoder, steps, prompt[:, :-1], caches)
        tables = ([cache.tables[0] for cache in caches], [cache.cross_table for cache in caches])
        pages = (as_table(of_each, prompt.device) for of_each in tables)
        self._present().join(at, prompt, plans, [cache.frames for cache in caches], *pages)
        for seat, text in zip(at, texts, strict=True):
            self._at[seat] = text

    def _room(self, *sizes: int) -> list[Step]:
        """Seats for texts of these sizes (see `Seats.fits`); returns the decoder's layers."""
        if not any(self._at):
            # Of the weights as they are now.
            steps, read = self._made.get(self._model.decoding_parameters(), self._functions)
            if self._steps is not steps:
                self._steps = steps
                self._seats = Seats(read, self.pool.keys.device, self._rows, *map(roomy, sizes))
        if not self._present().fits(*sizes):
            self._seats = self._present().wider(*map(roomy, sizes))
        return self._steps

    def _functions(self) -> tuple[list[Step], Read]:
        steps, head = self._model.lasting_functions(self._rows)
        return steps, reader(self._decoder, steps, head, self.pool)

    def _present(self) -> Seats:
        assert self._seats is not None
        return self._seats


def _count(text: Text) -> int:
    return text.prompt.shape[1]
