"""The page operations' references against their definitions written out, and a stream of calls against attention."""

import cmath
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastspeech.kernels import page_append, page_fork, paged_attention, rope_attention, use_backend

INV_FREQ = torch.tensor([1.0, 0.3, 0.05], dtype=torch.float64)


@pytest.fixture(autouse=True)
def references() -> Iterator[None]:
    with use_backend("reference"):
        yield


def turned(x: Tensor, position: int, interleaved: bool) -> Tensor:
    x = x.clone()
    for m, frequency in enumerate(INV_FREQ.tolist()):
        a, b = (2 * m, 2 * m + 1) if interleaved else (m, m + len(INV_FREQ))
        moved = complex(x[a], x[b]) * cmath.exp(1j * position * frequency)
        x[a], x[b] = moved.real, moved.imag
    return x


def place(table: Tensor | None, page_size: int, row: int, position: int) -> tuple[int, int]:
    if table is None:
        return row, position % page_size
    return int(table[row, position // page_size % table.shape[1]]), position % page_size


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("ring", [False, True])
def test_append(ring: bool, interleaved: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    table = None if ring else torch.tensor([[5, 0], [2, 3], [-7, 99]], dtype=torch.int32)
    keys, values = torch.randn(2, 3, 4, 2, 7, generator=generator, dtype=torch.float64)
    key_pages, value_pages = torch.randn(2, 3 if ring else 6, 2, 5, 7, generator=generator, dtype=torch.float64)
    positions, counts = torch.tensor([13, 3, -1]), torch.tensor([4, 2, 4])
    expected = key_pages.clone(), value_pages.clone()
    for row in (0, 1):
        for i in range(int(counts[row])):
            position = int(positions[row]) + i
            page, slot = place(table, 5, row, position)
            for head in (0, 1):
                expected[0][page, head, slot] = turned(keys[row, i, head], position, interleaved)
                expected[1][page, head, slot] = values[row, i, head]
    page_append(keys, values, key_pages, value_pages, table, positions, counts, INV_FREQ, interleaved)
    torch.testing.assert_close((key_pages, value_pages), expected, atol=1e-12, rtol=1e-12)


def test_append_of_nothing() -> None:
    pages, table = torch.full((2, 1, 4, 2), torch.nan), torch.tensor([[-1], [2**31 - 1]], dtype=torch.int32)
    page_append(*torch.ones(2, 2, 3, 1, 2), pages, pages.clone(), table, torch.tensor([-1, -9]))
    page_append(*torch.ones(2, 2, 0, 1, 2), pages, pages.clone(), table, torch.tensor([0, 1]))
    assert pages.isnan().all()


def written_out(
    q: Tensor, pages: tuple[Tensor, Tensor], table: Tensor | None, positions: Tensor, **flags: Any
) -> Tensor:
    """The definition of paged_attention in loops."""
    out = torch.zeros_like(q)
    rows, tokens, heads, dim = q.shape
    _, kv_heads, page_size, _ = pages[0].shape
    slots = page_size * (1 if table is None else table.shape[1])
    for row in range(rows):
        first = int(positions[row])
        if flags["causal"] and first < 0:
            continue
        for i in range(tokens):
            last = first + i if flags["causal"] else first + tokens - 1
            since = max(0, first + tokens - slots, last + 1 - (flags["window"] or last + 1))
            places = [place(table, page_size, row, position) for position in range(since, last + 1)]
            for head in range(heads if places else 0):
                query = turned(q[row, i, head], first + i, flags["interleaved"])
                of_head = head // (heads // kv_heads)
                weights = [math.exp(float(query @ pages[0][page, of_head, slot]) / dim**0.5) for page, slot in places]
                for weight, (page, slot) in zip(weights, places, strict=True):
                    out[row, i, head] += weight / sum(weights) * pages[1][page, of_head, slot]
    return out


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize(
    ("tokens", "kv_heads", "table", "positions", "causal", "window"),
    [
        (1, 4, None, (0, 9, 23), True, 0),
        (3, 2, None, (4, -1, 33), True, 7),
        (2, 1, ((3, 0), (0, 5), (2, 1)), (17, 6, 10), True, 19),
        (2, 4, ((3, 0), (3, 5), (2, 1)), (17, 11, -1), True, 0),
        (1, 2, ((3, -9), (0, 99), (2, 1)), (9, 3, 4), True, 4),
        (2, 2, None, (8, -1, -2), False, 0),
    ],
)
def test_attention(
    tokens: int, kv_heads: int, table: Any, positions: tuple[int, ...], causal: bool, window: int, grad: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, tokens, 4, 7, generator=generator, dtype=torch.float64)
    pages = tuple(torch.randn(2, 3 if table is None else 6, kv_heads, 10, 7, generator=generator, dtype=torch.float64))
    tables = None if table is None else torch.tensor(table, dtype=torch.int32)
    at = torch.tensor(positions)
    flags: dict[str, Any] = {"causal": causal, "window": window, "interleaved": False}
    expected = written_out(q, pages, tables, at, **flags)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(
            paged_attention(q, *pages, tables, at, INV_FREQ, **flags), expected, atol=1e-12, rtol=1e-12
        )
        # What a query does not see may be anything.
        seen = torch.zeros(pages[0].shape, dtype=torch.bool)
        slots = 10 * (1 if tables is None else tables.shape[1])
        for row, first in enumerate(positions):
            end = first + tokens if first >= 0 or not causal else 0
            for position in range(max(0, end - slots, (first + 1 - window) if window else 0), end):
                page, slot = place(tables, 10, row, position)
                seen[page, :, slot] = True
        hidden = tuple(side.masked_fill(~seen, torch.nan) for side in pages)
        torch.testing.assert_close(
            paged_attention(q, *hidden, tables, at, INV_FREQ, **flags), expected, atol=1e-12, rtol=1e-12
        )


@pytest.mark.parametrize("page_size", [24, 4])
def test_a_stream_of_calls_is_attention(page_size: int) -> None:
    """Rows that begin, pause and begin again at different steps, each on its own past in rings of its own."""
    generator = torch.Generator().manual_seed(0)
    rows, tokens, heads, dim, window, columns = 3, 2, 2, 8, 9, 24 // page_size
    pages = tuple(torch.full((2, rows * columns, heads, page_size, dim), torch.nan, dtype=torch.float64))
    table = torch.randperm(rows * columns, generator=generator).to(torch.int32).view(rows, columns)
    past: list[list[Tensor]] = [[], [], []]
    for step in range(40):
        q, k, v = torch.randn(3, rows, tokens, heads, dim, generator=generator, dtype=torch.float64)
        if step == 23:
            past[1] = []
        active = [row for row in range(rows) if step >= 2 * row and (step + row) % 5]
        positions = torch.tensor([sum(map(len, past[row])) // 2 if row in active else -1 for row in range(rows)])
        page_append(k, v, *pages, table, positions, inv_freq=INV_FREQ)
        out = paged_attention(q, *pages, table, positions, INV_FREQ, window=window)
        for row in range(rows):
            if row not in active:
                assert not out[row].any()
                continue
            past[row] += [k[row], v[row]]
            mine = torch.cat(past[row][::2])[None], torch.cat(past[row][1::2])[None]
            steps = positions[row] + torch.arange(tokens)[None]
            whole = rope_attention(
                q[row, None], *mine, INV_FREQ, q_positions=steps, causal=True, window=window, interleaved=False
            )
            torch.testing.assert_close(out[row], whole[0], atol=1e-12, rtol=1e-12)


def test_beams_part_by_a_fork() -> None:
    """Two beams share a past; the page they both go on in is copied before either writes."""
    generator = torch.Generator().manual_seed(0)
    pages = tuple(torch.randn(2, 5, 1, 4, 6, generator=generator, dtype=torch.float64))
    before = tuple(side.clone() for side in pages)
    page_fork(*pages, torch.tensor([2, -1]), torch.tensor([4, 0]))
    for side, old in zip(pages, before, strict=True):
        assert torch.equal(side[4], old[2])
        assert torch.equal(side[:4], old[:4])
    table = torch.tensor([[1, 2], [1, 4]], dtype=torch.int32)
    q, k, v = torch.randn(3, 2, 1, 1, 6, generator=generator, dtype=torch.float64)
    positions = torch.tensor([6, 6])
    page_append(k, v, *pages, table, positions)
    both = paged_attention(q, *pages, table, positions)
    for row in range(2):
        mine = [
            torch.cat([old[1, 0], old[2, 0, :2], new[row, 0]])[None, :, None]
            for old, new in zip(before, (k, v), strict=True)
        ]
        torch.testing.assert_close(both[row], rope_attention(q[row, None], *mine)[0])


def test_fork_of_nothing() -> None:
    pages = tuple(torch.randn(2, 5, 1, 4, 6))
    before = tuple(side.clone() for side in pages)
    page_fork(*pages, torch.tensor([-1, -1]), torch.tensor([2, 3]))
    page_fork(*pages, *torch.empty(2, 0, dtype=torch.int64))
    assert all(torch.equal(side, old) for side, old in zip(pages, before, strict=True))


PAGES = {"key_pages": torch.zeros(3, 2, 4, 8), "value_pages": torch.zeros(3, 2, 4, 8)}
ROWS = {**PAGES, "table": None, "positions": torch.zeros(3, dtype=torch.int64)}
SHARED = [
    ({"value_pages": torch.zeros(3, 2, 5, 8)}, ValueError, "value_pages must have shape"),
    ({"key_pages": torch.zeros(0, 2, 4, 8), "value_pages": torch.zeros(0, 2, 4, 8)}, ValueError, "not be empty"),
    ({"key_pages": torch.zeros(4, 2, 4, 8), "value_pages": torch.zeros(4, 2, 4, 8)}, ValueError, "3 rows, 4 pages"),
    ({"positions": torch.zeros(3)}, TypeError, "positions must be int64"),
    ({"positions": torch.zeros(2, dtype=torch.int64)}, ValueError, "positions must be"),
    ({"table": torch.zeros(3, 2, dtype=torch.int64)}, TypeError, "table must be int32"),
    ({"table": torch.zeros(2, 2, dtype=torch.int32)}, ValueError, "table must be"),
    ({"inv_freq": torch.zeros(5)}, ValueError, "at most 4"),
    ({"inv_freq": torch.zeros(4, dtype=torch.float64)}, ValueError, "inv_freq must be float32"),
]


@pytest.mark.parametrize(
    ("change", "kind", "fault"),
    [
        *SHARED,
        ({"keys": torch.zeros(3, 1, 8)}, ValueError, "keys must have shape"),
        ({"values": torch.zeros(3, 2, 2, 8)}, ValueError, "values must have shape"),
        ({"keys": torch.zeros(3, 1, 1, 8), "values": torch.zeros(3, 1, 1, 8)}, ValueError, "key_pages must have shape"),
        ({"keys": torch.zeros(3, 5, 2, 8), "values": torch.zeros(3, 5, 2, 8)}, ValueError, "5 new tokens do not fit"),
        ({"counts": torch.zeros(2, dtype=torch.int64)}, ValueError, "lengths must be"),
        ({"keys": torch.zeros(3, 1, 2, 8, requires_grad=True)}, RuntimeError, "no gradient"),
    ],
)
def test_what_append_refuses(change: dict[str, Any], kind: type[Exception], fault: str) -> None:
    plain = {"keys": torch.zeros(3, 1, 2, 8), "values": torch.zeros(3, 1, 2, 8), **ROWS}
    with pytest.raises(kind, match=fault):
        page_append(**plain | change)


@pytest.mark.parametrize(
    ("change", "kind", "fault"),
    [
        *SHARED,
        ({"q": torch.zeros(3, 4, 8)}, ValueError, "q must have shape"),
        ({"q": torch.zeros(3, 1, 4, 6)}, ValueError, "key_pages must have shape"),
        ({"q": torch.zeros(3, 1, 3, 8)}, ValueError, "2 key/value heads do not divide 3"),
        ({"window": 3, "causal": False}, ValueError, "window"),
        ({"window": -1}, ValueError, "window"),
    ],
)
def test_what_attention_refuses(change: dict[str, Any], kind: type[Exception], fault: str) -> None:
    with pytest.raises(kind, match=fault):
        paged_attention(**{"q": torch.zeros(3, 1, 4, 8), **ROWS} | change)


def test_what_fork_refuses() -> None:
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(TypeError, match="sources must be int64"):
        page_fork(**PAGES, sources=one.float(), targets=one)
    with pytest.raises(ValueError, match="targets must have shape"):
        page_fork(**PAGES, sources=one, targets=one[:0])
