"""One pool of pages for the keys and values of all that is being decoded, and the cache of a request on it."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastspeech.kernels import page_fork

from .graphs import upload


class PoolError(RuntimeError):
    """The pool has no pages left. Who reserves before taking never meets it."""


class PagePool:
    """Pages of fixed size, each with a count of those who refer to it.

    A page has a place for `page_size` keys and as many values in every layer. Pages are taken from what was reserved:
    `reserve` says beforehand whether a request can be served to its end.

    Args:
        layers, kv_heads, head_dim, dtype, device: of what is stored. The dtype is that of the keys and values, or
            float8_e4m3fn.
        pages: how many there are.
        page_size: tokens of a page.
        scales: (layers, 2, kv_heads) float32, what keys and values are divided by in the pages (see `page_append`);
            None for 1.

    Attributes:
        keys, values: (layers, pages, kv_heads, page_size, head_dim).
        scales: of each layer's keys and of its values, (kv_heads,) or None.
        in_use: pages that somebody refers to.
        reserved: pages that are in use or promised.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        pages: int,
        *,
        page_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        scales: Tensor | None = None,
    ) -> None:
        shape = (2, layers, pages, kv_heads, page_size, head_dim)
        self.keys, self.values = torch.zeros(shape, dtype=dtype, device=device).unbind(0)
        by_layer = [(None, None)] * layers if scales is None else [layer.unbind() for layer in scales.to(device)]
        self.scales: list[tuple[Tensor | None, ...]] = by_layer
        self.page_size = page_size
        self.reserved = 0
        self._references = [0] * pages
        self._free = list(range(pages))[::-1]

    def grow(self, pages: int) -> None:
        """Have so many pages in all, no fewer than before; what is in them stays. The keys and values are moved."""
        layers, before, *page = self.keys.shape
        # Not touched, it is no memory yet.
        memory = self.keys.new_empty(2, layers, pages, *page)
        for grown, held in zip(memory, (self.keys, self.values), strict=True):
            grown[:, :before] = held
        self.keys, self.values = memory.unbind(0)
        self._references += [0] * (pages - before)
        self._free = [*range(pages - 1, before - 1, -1), *self._free]

    @staticmethod
    def page_bytes(layers: int, kv_heads: int, head_dim: int, page_size: int, dtype: torch.dtype) -> int:
        """What a page of all layers takes."""
        return 2 * layers * kv_heads * page_size * head_dim * dtype.itemsize

    @property
    def pages(self) -> int:
        """How many there are."""
        return len(self._references)

    @property
    def in_use(self) -> int:
        return len(self._references) - len(self._free)

    def needed(self, tokens: int) -> int:
        """Pages for so many tokens."""
        return -(-tokens // self.page_size)

    def reserve(self, pages: int) -> bool:
        """Promise so many pages, if there are as many that nobody has been promised."""
        if self.reserved + pages > self.pages:
            return False
        self.reserved += pages
        return True

    def release(self, pages: int) -> None:
        """Take back a promise, after the pages that were taken by it were dropped."""
        self.reserved -= pages

    def take(self, count: int) -> list[int]:
        """So many pages that nobody refers to, each referred to once.

        Raises:
            PoolError: there are not as many.
        """
        if count > len(self._free):
            raise PoolError(f"{count} pages are needed, {len(self._free)} of {self.pages} are free")
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._references[page] = 1
        return taken

    def share(self, pages: Sequence[int]) -> None:
        """Refer to pages once more."""
        for page in pages:
            self._references[page] += 1

    def drop(self, pages: Sequence[int]) -> None:
        """Refer to pages once less; those that nobody refers to any more are free."""
        for page in pages:
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free.append(page)

    def is_shared(self, page: int) -> bool:
        """Whether a page is referred to more than once."""
        return self._references[page] > 1

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy pages (source, target) in every layer."""
        if pairs:
            self.fork(*upload(torch.tensor(pairs), self.keys.device).T)

    def fork(self, sources: Tensor, targets: Tensor) -> None:
        """Copy page sources[i] to targets[i] in every layer, (k,) int64 on the device; nothing where sources[i] is
        negative."""
        layers, pages = self.keys.shape[:2]
        first = pages * torch.arange(layers, device=self.keys.device)[:, None]
        places = (first + sources).masked_fill(sources < 0, -1).flatten(), (first + targets).flatten()
        page_fork(self.keys.flatten(0, 1), self.values.flatten(0, 1), *places)


class Paged:
    """A cache on pages, whose tables the host holds. It stands where the searches have a `DecoderCache`."""

    def follow(self, sources: Sequence[int]) -> None:
        """Let row i continue row sources[i], each within its own utterance."""
        raise NotImplementedError


class PagedCache(Paged):
    """The cache of one request: what its rows have read, and the frames of its utterance, on a pool's pages.

    Rows share the pages of what they have in common: `follow` moves references, and `prepare` copies a page only where
    a row is about to write to one that others refer to.

    Args:
        pool: where the pages are.
        rows: hypotheses of the utterance.
        most_tokens: the tokens that each row will have read at the end.
        frames: of the encoder's output.

    Attributes:
        length: the tokens that each row has read.
        most_tokens: as given.
        tables: the pages of each row.
        cross_table: the pages of the utterance's frames.
        frames: how many these are.

    Raises:
        PoolError: the pool has not as many pages as the request may need at the most.
    """

    def __init__(self, pool: PagePool, rows: int, most_tokens: int, frames: int) -> None:
        self.pool = pool
        self.rows_per_input = rows
        self.length = 0
        self.most_tokens = most_tokens
        self.frames = frames
        self._copies: list[tuple[int, int]] = []
        self._reserved = self.most_pages(pool, rows, most_tokens, frames)
        if not pool.reserve(self._reserved):
            raise PoolError(f"{self._reserved} pages are needed, {pool.pages - pool.reserved} are not promised")
        self.tables: list[list[int]] = [[] for _ in range(rows)]
        self.cross_table = pool.take(pool.needed(frames))

    @staticmethod
    def most_pages(pool: PagePool, rows: int, most_tokens: int, frames: int) -> int:
        """The pages that a request may need at the most."""
        return rows * pool.needed(most_tokens) + pool.needed(frames)

    def prepare(self, tokens: int) -> list[tuple[int, int]]:
        """Make room for so many further tokens of every row. Returns the pages to copy, (source, target), before
        they are written to; the same ones again until `advance`."""
        for table in self.tables:
            if self.length % self.pool.page_size and self.pool.is_shared(table[-1]):
                (own,) = self.pool.take(1)
                self._copies.append((table[-1], own))
                self.pool.drop(table[-1:])
                table[-1] = own
            table += self.pool.take(self.pool.needed(self.length + tokens) - len(table))
        return self._copies

    def advance(self, tokens: int) -> None:
        """Count so many tokens of every row as read."""
        self.length += tokens
        self._copies = []

    def follow(self, sources: Sequence[int]) -> None:
        """As `Paged.follow`."""
        if sources == list(range(len(self.tables))):
            return
        before = self.tables
        self.tables = [list(before[source]) for source in sources]
        for table in self.tables:
            self.pool.share(table)
        for table in before:
            self.pool.drop(table)

    def keep(self, inputs: list[int]) -> None:
        """Nothing: there is one utterance, and it stays."""

    def separate(self) -> None:
        """Nothing: each row has a table of its own."""

    def free(self) -> None:
        """Give all pages back. Further calls do nothing."""
        for table in [*self.tables, self.cross_table]:
            self.pool.drop(table)
        self.pool.release(self._reserved)
        self.tables, self.cross_table, self._reserved = [], [], 0


def as_table(tables: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(rows, columns) int32 of the pages of each row, 0 behind a row's last."""
    columns = max(1, *(len(table) for table in tables))
    return upload(torch.tensor([padded(table, columns) for table in tables], dtype=torch.int32), device)


def padded(table: Sequence[int], columns: int) -> list[int]:
    """The pages of a row, with 0 behind its last up to so many."""
    return [*table, *[0] * (columns - len(table))]
