"""Texts that are written greedily on the device: the host starts steps, and looks from time to time who has ended."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .graphs import Graphs, bucket_of, captures, upload
from .plan import Plan

STEPS = 4
"""Between two looks. What was copied for one is read after the steps that follow, so that a GPU never waits for the
host; up to twice as many steps are for nothing at the end."""


def serves(device: torch.device) -> bool:
    """Whether texts are written here on a device. Elsewhere it costs little to look at every token, and steps of few
    rows are worth more than steps that are all alike."""
    return captures(device)


def graphable(plan: Plan) -> bool:
    """Whether every step of a plan is the same work for the device, whatever was written: the likeliest token of
    logits as they are, of which nothing is kept nor told."""
    plain = plan.beams == plan.returned == 1 and not plan.do_sample and not plan.as_record
    return plain and not plan.rules and not plan.criteria and plan.streamer is None


class Places(NamedTuple):
    """Where rows stand on the pages of a pool.

    positions: (rows,) int64, of each row's first new token; negative where the row is idle. table: (rows, columns)
    int32, the pages of its tokens. cross_positions: (rows,) int64, its frames less the n new tokens; below 1 - n where
    it is idle. cross_table: (rows, columns) int32, the pages of its frames. most: a position that no row is behind.
    """

    positions: Tensor
    table: Tensor
    cross_positions: Tensor
    cross_table: Tensor
    most: int


Read = Callable[[Tensor, Places], Tensor]
"""Called with further tokens (rows, 1) int64 and where they are read, gives the logits (rows, vocabulary) behind."""


class Seats:
    """Texts, one a seat, whose state is on the device alone. A step writes a token of each; it is recorded once for
    every number of rows of `bucket`.

    Args:
        read: the model. It looks at no value on the host.
        device: where all of it is.
        rows: how many seats.
        columns, cross_columns: pages of a text and of what it is a text of, at most.
        length: tokens of a text at most, prompt included.
        ends: different tokens that may end one text.

    Attributes:
        tokens, lengths, limits, last_frames, starts: (rows,) int64, of the text at a seat: its last token; its tokens
            so far; how many it may have, and once it has ended, has; the last of the frames that it is a text of; where
            in `written`, taken as one line, it begins. A seat is idle where its length is not below its limit.
        ends: (rows, ends) int64, the tokens that end it; -1 where there are fewer.
        table, cross_table: (rows, columns) and (rows, cross_columns) int32, its pages.
        written: (rows, length) int64, the texts, by their lines.
        graphs: the recorded steps.
    """

    def __init__(
        self, read: Read, device: torch.device, rows: int, columns: int, cross_columns: int, length: int, ends: int
    ) -> None:
        self._read = read
        self.rows, self.length = rows, length
        with torch.inference_mode(False), torch.device(device):
            self._state = torch.zeros(5, rows, dtype=torch.int64)
            self.ends = torch.full((rows, ends), -1)
            self.table = torch.zeros(rows, columns, dtype=torch.int32)
            self.cross_table = torch.zeros(rows, cross_columns, dtype=torch.int32)
            # Behind the texts, a place for each seat to write to while it is idle.
            self._memory = torch.zeros(rows * length + rows, dtype=torch.int64)
            self._nowhere = torch.arange(rows * length, rows * length + rows)
        self.tokens, self.lengths, self.limits, self.last_frames, self.starts = self._state.unbind()
        self.written = self._memory[: rows * length].view(rows, length)
        self.graphs = Graphs(device)

    def bucket(self, rows: int) -> int:
        """The rows of a step for so many seats: the next power of two, or all seats."""
        return bucket_of(rows, self.rows)

    def sit(self, prompt: Tensor, frames: Tensor, plan: Plan) -> None:
        """Begin the texts of a batch at the first seats, whose pages hold all of prompt (B, n) but its last token, and
        frames (B,) of each. No other seat stays taken."""
        rows, count = prompt.shape
        self.limits.zero_()
        self.tokens[:rows], self.lengths[:rows], self.last_frames[:rows] = prompt[:, -1], count, frames - 1
        self.starts.copy_(self.length * torch.arange(self.rows, device=prompt.device))
        self.ends.fill_(-1)[:rows, : len(plan.eos)] = upload(torch.tensor(plan.eos, dtype=torch.int64), prompt.device)
        self.written.fill_(plan.pad)[:rows, :count] = prompt
        each = [plan.max_length] * rows if plan.limits is None else plan.limits
        self.limits[:rows] = upload(torch.tensor(each), prompt.device)

    def join(
        self, seats: Sequence[int], prompt: Tensor, plans: Sequence[Plan], frames: Sequence[int], *tables: Tensor
    ) -> None:
        """Begin further texts, each in the line of `written` of its seat's number.

        Args:
            seats: k idle ones.
            prompt: (k, n) int64, of which the pages hold all but the last token.
            plans, frames: of each text.
            tables: the pages of the texts and of their frames, each (k, columns) int32.
        """
        device = self._state.device
        count = prompt.shape[1]
        told = [
            (seat, count, plan.max_length if plan.limits is None else plan.limits[0], heard - 1, seat * self.length)
            for seat, plan, heard in zip(seats, plans, frames, strict=True)
        ]
        ends = [[*plan.eos, *[-1] * (self.ends.shape[1] - len(plan.eos))] for plan in plans]
        at, *rest = upload(torch.tensor(told), device).T
        self.ends[at] = upload(torch.tensor(ends), device)
        for table, given in zip((self.table, self.cross_table), tables, strict=True):
            table[:, : given.shape[1]][at] = given
        self.written[:, :count][at] = prompt
        self._state[:, at] = torch.stack((prompt[:, -1], *rest))

    def leave(self, seat: int) -> None:
        """End the text at a seat."""
        self.limits[seat] = 0

    def wider(self, columns: int, cross_columns: int, length: int, ends: int) -> "Seats":
        """Seats with room for as much, and for what there is here, with the texts as they are."""
        sizes = map(max, (columns, cross_columns, length, ends), (*self._widths(), self.length, self.ends.shape[1]))
        made = Seats(self._read, self._state.device, self.rows, *sizes)
        for name in ("_state", "ends", "table", "cross_table", "written"):
            held = getattr(self, name)
            getattr(made, name)[:, : held.shape[1]] = held
        made.starts.copy_(self.starts // self.length * made.length)
        return made

    def fits(self, columns: int, cross_columns: int, length: int, ends: int) -> bool:
        """Whether there is room for a text of so many pages, tokens and ends."""
        widths = *self._widths(), self.length, self.ends.shape[1]
        return all(more <= held for more, held in zip((columns, cross_columns, length, ends), widths, strict=True))

    def _widths(self) -> tuple[int, int]:
        return self.table.shape[1], self.cross_table.shape[1]

    def step(self, rows: int) -> None:
        """Write a token of each text at the first `rows` seats. An idle seat stays idle, and its text as it is."""
        tokens, lengths, limits, last_frames, starts = self._state[:, :rows].unbind()
        idle = lengths >= limits
        places = Places(
            (lengths - 1).masked_fill(idle, -1),
            self.table[:rows],
            last_frames.masked_fill(idle, -1),
            self.cross_table[:rows],
            self.length - 1,
        )
        torch.argmax(self._read(tokens[:, None], places), -1, out=tokens)
        self._memory.scatter_(0, torch.where(idle, self._nowhere[:rows], starts + lengths), tokens)
        lengths.add_(idle.logical_not())
        ended = (tokens[:, None] == self.ends[:rows]).any(1)
        torch.where(ended, lengths, limits, out=limits)

    def run(self, rows: int, steps: int) -> None:
        """So many steps of the first `rows` seats."""
        bucket = self.bucket(rows)
        self.prepare(bucket)
        for _ in range(steps):
            self.graphs.run(bucket)

    def prepare(self, bucket: int) -> None:
        """Record the step of so many rows, if it has not been."""
        if bucket in self.graphs:
            return
        # To record a step takes it, which changes no text and no page where all are idle.
        held = self._state.clone()
        self.limits.zero_()
        self.graphs.record(bucket, partial(self.step, bucket))
        self._state.copy_(held)

    def look(self) -> "Look":
        """The lengths and limits at all seats, (2, rows), as they are once the steps so far were taken."""
        return Look(self._state[1:3])

    def look_at_texts(self) -> "Look":
        """The texts themselves, (rows, length), likewise."""
        return Look(self.written)

    def move(self, seats: Sequence[int], bucket: int) -> None:
        """Let the texts at `seats` take the first seats, in this order, and no others the further ones of a bucket."""
        sources = upload(torch.tensor(seats), self._state.device)
        for rows in (self._state.T, self.ends, self.table, self.cross_table):
            rows[: len(seats)] = rows[sources]
        self.limits[len(seats) : bucket] = 0

    def write(self, rows: int, steps: int) -> int:
        """Write the texts at the first `rows` seats to their ends, which come after `steps` tokens at most. Seats of
        ended texts are left to the others. Returns the length of the longest."""
        longest = 0
        before: Look | None = None
        while steps:
            count = min(steps, STEPS)
            self.run(rows, count)
            steps -= count
            before, look = self.look(), before
            if look is None:
                continue
            lengths, limits = look.known().tolist()
            longest = max(longest, *lengths[:rows])
            running = [seat for seat in range(rows) if lengths[seat] < limits[seat]]
            if not running:
                return longest
            if self.bucket(len(running)) < self.bucket(rows):
                self.move(running, self.bucket(len(running)))
                # What it tells is of other seats.
                rows, before = len(running), None
        return max(longest, *self.look().known()[0, :rows].tolist())


class Look:
    """A copy of what is on the device, on its way to the host."""

    def __init__(self, told: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if told.is_cuda:
            self._told = torch.empty(told.shape, dtype=told.dtype, pin_memory=True).copy_(told, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(told.device))
        else:
            self._told = told.clone()

    def known(self) -> Tensor:
        """It, when it has come."""
        if self._event is not None:
            self._event.synchronize()
        return self._told
