"""Greedy decoding of whole batches on a device, over seats and pages that stay from call to call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastspeech.generation.graphs import Turns, next_power_of_two
from fastspeech.generation.pages import PagePool
from fastspeech.generation.plan import Plan
from fastspeech.generation.seats import Places, Read, Seats
from fastspeech.kernels import dispatch
from fastspeech.layers import paged
from fastspeech.layers.derived import Derived, Kept
from fastspeech.layers.relaid import Map

if TYPE_CHECKING:
    from fastspeech.layers.decoder import Decoder, Step

PAGE_SIZE = 16


class Sizes(NamedTuple):
    """What there is room for: seats, with pages of tokens, pages of frames, tokens and ends of each; pages in all."""

    rows: int
    columns: int
    cross_columns: int
    length: int
    ends: int
    pages: int


class Written(NamedTuple):
    """What is kept from call to call."""

    steps: list[Step]
    pool: PagePool
    seats: Seats


def reader(decoder: Decoder, steps: list[Step], head: Map, pool: PagePool) -> Read:
    """The model as `Seats` calls it, over the pages of a pool."""

    def read(input_ids: Tensor, places: Places) -> Tensor:
        return head(paged.through(decoder, steps, pool, input_ids, places)[:, -1])

    return read


class Seated(Kept):
    """The seats of a model that is decoded greedily, their pages, and the steps recorded over both.

    They are kept until a parameter is replaced or written to, and grow to what the largest calls needed. Calls from
    several threads wait for one another.

    Attributes:
        seats: those there are.
    """

    follows_writes = True

    def __init__(self) -> None:
        self._turns = Turns()
        self.drop()

    def drop(self) -> None:
        self.seats: Seats | None = None
        self._made = Derived()
        self._sizes = Sizes(0, 0, 0, 0, 0, 0)
        self._backend = ""

    def write(self, model: Any, encoded: Tensor, counts: Tensor | None, prompt: Tensor, plan: Plan) -> Tensor:
        """What is written of encoded (B, frames, width), of each row its first `counts` (B,) frames, or all.

        Args:
            model: a `WithHead`, whose seats these are.
            prompt: (B, n) int64.
            plan: one that is `graphable`.

        Returns:
            (B, length) int64, prompt included, padded behind the ends.
        """
        with self._turns.take(encoded.device):
            seats = self._sit(model, encoded, counts, prompt, plan)
            longest = seats.write(len(prompt), plan.max_length - prompt.shape[1])
            return seats.written[: len(prompt), :longest].clone()

    def prepare(self, model: Any, encoded: Tensor, counts: Tensor | None, prompt: Tensor, plan: Plan) -> None:
        """Record the steps that `write` could come to need with these arguments."""
        with self._turns.take(encoded.device):
            seats = self._sit(model, encoded, counts, prompt, plan)
            bucket = seats.bucket(len(prompt))
            while bucket:
                seats.prepare(bucket)
                bucket //= 2

    def _sit(self, model: Any, encoded: Tensor, counts: Tensor | None, prompt: Tensor, plan: Plan) -> Seats:
        """Let all sit down, their prompts read but for the last token."""
        decoder, device = model.model.decoder, encoded.device
        rows, frames, _ = encoded.shape
        columns, cross_columns = (-(-count // PAGE_SIZE) for count in (plan.max_length - 1, frames))
        pages = rows * (columns + cross_columns)
        need = Sizes(next_power_of_two(rows), columns, cross_columns, plan.max_length, len(plan.eos), pages)
        steps, pool, seats = self._room(need, model)
        own = torch.arange(pages, dtype=torch.int32, device=device).view(rows, -1)
        table, cross_table = own[:, :columns].contiguous(), own[:, columns:].contiguous()
        seats.table[:rows, :columns], seats.cross_table[:rows, :cross_columns] = table, cross_table
        paged.hear(decoder, encoded, pool, cross_table, counts)
        heard = torch.full((rows,), frames, device=device) if counts is None else counts
        if (count := prompt.shape[1] - 1) > 0:
            places = Places(torch.zeros_like(heard), table, heard - count, cross_table, 0)
            paged.through(decoder, steps, pool, prompt[:, :-1], places)
        seats.sit(prompt, heard, plan)
        return seats

    def _room(self, need: Sizes, model: Any) -> Written:
        fits = all(more <= held for more, held in zip(need, self._sizes, strict=True))
        if not fits or dispatch.backend() != self._backend:
            grown = Sizes(*map(max, map(roomy, need), self._sizes))
            self.drop()  # before as much again is taken
            self._sizes, self._backend = grown, dispatch.backend()
        return self._made.get(model.decoding_parameters(), lambda: self._make(model))

    def _make(self, model: Any) -> Written:
        *sizes, pages = self._sizes
        decoder = model.model.decoder
        steps, head = model.lasting_functions(self._sizes.rows)
        weight = next(decoder.parameters())
        kind = {"page_size": PAGE_SIZE, "dtype": weight.dtype, "device": weight.device}
        pool = PagePool(len(steps), decoder.kv_heads, decoder.head_dim, pages, **kind)
        self.seats = Seats(reader(decoder, steps, head, pool), weight.device, *sizes)
        return Written(steps, pool, self.seats)


def roomy(count: int) -> int:
    """A little more, so that what grows slowly is seldom made anew: the next of four numbers between powers of two."""
    step = max(next_power_of_two(count) >> 3, 1)
    return max(-(-count // step) * step, 4)
