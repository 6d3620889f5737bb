"""A step of searches: the host decides which rows go on from which, the device reads a token of each as one launch."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fastspeech.kernels import dispatch

from .graphs import Graphs, bucket_of, staged
from .pages import PagedCache, PagePool, padded
from .seats import Places, Read

_TOLD = 4
"""Numbers of a row before its pages: its position, the last of its frames, a page to copy and where to."""


class RecordedStep:
    """Reads one token of every row, recorded once for every number of rows of `bucket`.

    Where rows stand is told anew at each step, into memory that stays, without a wait for the device; rows that are
    missing to a bucket are idle.

    Args:
        read: the model, as `Seats` calls it, over the pages of `pool`.
        rows: at once, at most.
        columns, cross_columns: pages of a row's tokens and of its frames, at most.

    Attributes:
        graphs: the recorded steps.
    """

    def __init__(self, read: Read, pool: PagePool, rows: int, columns: int, cross_columns: int) -> None:
        self._read, self._pool = read, pool
        self.rows, self.columns, self.cross_columns = rows, columns, cross_columns
        self._heard: list[PagedCache] = []
        self._seen: tuple[int, str] | None = None
        with torch.inference_mode(False), torch.no_grad():
            with torch.device(pool.keys.device):
                self._ids = torch.zeros(rows, 1, dtype=torch.int64)
                self._told = torch.zeros(rows, _TOLD + columns, dtype=torch.int32)
                self._cross_table = torch.zeros(rows, cross_columns, dtype=torch.int32)
            self._tell(rows, [], [])
            # Of rows that are all idle; from now on the memory of what is read.
            self._logits = self._through(rows)
        self.graphs = Graphs(pool.keys.device)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """What there is room for: rows, columns and cross_columns."""
        return self.rows, self.columns, self.cross_columns

    def bucket(self, rows: int) -> int:
        """The rows of a step for so many: the next power of two, or all."""
        return bucket_of(rows, self.rows)

    def read(self, input_ids: Tensor, caches: Sequence[PagedCache]) -> Tensor:
        """Logits (rows, vocabulary) after a further token of all rows of these caches, which advance.

        input_ids: (rows, 1) int64, the rows of one cache after those of another.
        """
        rows = len(input_ids)
        bucket = self.bucket(rows)
        self.prepare(bucket)
        copies = [pair for cache in caches for pair in cache.prepare(1)]
        self._tell(bucket, caches, copies)
        self._ids[:rows] = input_ids
        self.graphs.run(bucket)
        for cache in caches:
            cache.advance(1)
        # A rule may keep what it is given.
        return self._logits[:rows].clone()

    def step(self, rows: int) -> None:
        """Read a token of the first `rows` rows, where they were told to stand."""
        self._logits[:rows] = self._through(rows)

    def _through(self, rows: int) -> Tensor:
        told = self._told[:rows]
        numbers = told[:, :_TOLD].T.to(torch.int64, memory_format=torch.contiguous_format)
        positions, cross_positions, sources, targets = numbers.unbind()
        self._pool.fork(sources, targets)
        most = self.columns * self._pool.page_size - 1
        table, cross_table = told[:, _TOLD:].clone(memory_format=torch.contiguous_format), self._cross_table[:rows]
        return self._read(self._ids[:rows], Places(positions, table, cross_positions, cross_table, most))

    def prepare(self, bucket: int) -> None:
        """Record the step of so many rows, if it has not been."""
        seen = self._pool.keys.data_ptr(), dispatch.backend()
        if seen != self._seen:
            self.graphs.clear()
            self._seen = seen
        if bucket not in self.graphs:
            # To record a step takes it, which changes no page where all rows are idle.
            self._tell(bucket, [], [])
            self.graphs.record(bucket, partial(self.step, bucket))

    def _tell(self, bucket: int, caches: Sequence[PagedCache], copies: Sequence[tuple[int, int]]) -> None:
        """Tell where the rows of these caches stand and which pages to copy before they are written to, (source,
        target), and that the further rows of a bucket are idle."""
        told = [self._line(cache.length, cache.frames - 1, table) for cache in caches for table in cache.tables]
        for line, pair in zip(told, copies, strict=False):  # a row forks one page at most
            line[2:_TOLD] = pair
        told += [self._line(-1, -1, [])] * (bucket - len(told))
        _refill(self._told[:bucket], told)
        if caches and [*caches] != self._heard:
            pages = [padded(cache.cross_table, self.cross_columns) for cache in caches for _ in cache.tables]
            _refill(self._cross_table[: len(pages)], pages)
            self._heard = [*caches]

    def _line(self, position: int, last_frame: int, table: Sequence[int]) -> list[int]:
        return [position, last_frame, -1, 0, *padded(table, self.columns)]


def _refill(memory: Tensor, numbers: list[list[int]]) -> None:
    """Copy numbers of the host to a device, without a wait for it."""
    memory.copy_(staged(torch.tensor(numbers, dtype=memory.dtype), memory.device), non_blocking=True)
