"""Pages: counted, shared, copied before they are written to; steps over them as over a cache of one's own."""

import pytest
import torch

from fastspeech.auto import FAMILIES
from fastspeech.generation.interface import Ask
from fastspeech.generation.pages import PagedCache, PagePool, PoolError
from fastspeech.layers import paged
from fastspeech.parity.models import EXAMPLES, with_random_weights


def pool(pages: int = 20, page_size: int = 4) -> PagePool:
    return PagePool(2, 1, 8, pages, page_size=page_size)


def test_what_is_dropped_as_often_as_it_was_shared_is_free() -> None:
    p = pool(3)
    first = p.take(2)
    p.share(first)
    p.drop(first)
    assert p.in_use == 2 and not any(map(p.is_shared, first))
    with pytest.raises(PoolError, match="2 pages are needed, 1 of 3 are free"):
        p.take(2)
    p.drop(first)
    assert p.in_use == 0 and len(set(p.take(3))) == 3


def test_a_pool_that_grows_keeps_what_is_in_it() -> None:
    p = pool(3)
    held = p.take(2)
    p.keys[:, held], p.values[:, held] = 1.0, 2.0
    p.grow(5)
    assert (p.pages, p.in_use, p.keys.shape[1]) == (5, 2, 5)
    assert p.keys[:, held].eq(1).all() and p.values[:, held].eq(2).all()
    assert set(p.take(3)).isdisjoint(held)
    with pytest.raises(PoolError):
        p.take(1)


def test_a_request_is_promised_all_it_may_need_or_refused() -> None:
    p = pool(20)
    first = PagedCache(p, rows=3, most_tokens=9, frames=13)  # 3 * 3 + 4
    assert p.reserved == 13 and p.in_use == 4
    with pytest.raises(PoolError):
        PagedCache(p, rows=2, most_tokens=9, frames=5)
    second = PagedCache(p, rows=1, most_tokens=9, frames=13)
    for cache in (first, second, first):
        cache.free()
    assert (p.reserved, p.in_use) == (0, 0)


def test_no_request_needs_more_than_it_was_promised() -> None:
    """Hypotheses that go on from one another at random."""
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 2, 5):
        p = pool(rows * 8 + 2, page_size=4)
        cache = PagedCache(p, rows, most_tokens=30, frames=7)
        assert p.reserved == p.pages
        while cache.length < 30:
            copies = cache.prepare(1)
            pages = [page for table in cache.tables for page in table]
            assert all(not p.is_shared(table[-1]) for table in cache.tables)
            assert all(source not in pages or p.is_shared(source) or source != target for source, target in copies)
            assert p.in_use == len(set(pages)) + 2 <= p.reserved
            cache.advance(1)
            cache.follow(torch.randint(rows, (rows,), generator=generator).tolist())
        cache.free()
        assert p.in_use == 0


def test_a_page_is_copied_before_one_of_two_rows_writes_to_it() -> None:
    p = pool()
    p.keys.normal_()
    cache = PagedCache(p, rows=2, most_tokens=12, frames=1)
    p.copy(cache.prepare(5))
    cache.advance(5)
    cache.follow([1, 1])
    (kept,) = {table[0] for table in cache.tables}
    assert cache.tables[0] == cache.tables[1] and p.in_use == 3
    held = p.keys[:, cache.tables[1][1]].clone()
    ((source, target),) = copies = cache.prepare(1)
    p.copy(copies)
    assert cache.tables[0] != cache.tables[1] and {source, target} == {table[1] for table in cache.tables}
    assert torch.equal(p.keys[:, target], held) and torch.equal(p.keys[:, source], held)
    assert [table[0] for table in cache.tables] == [kept, kept]


@pytest.mark.parametrize("name", ["cohere_asr", "moonshine", "speech_to_text"])
@pytest.mark.parametrize("page_size", [1, 3, 16])
@torch.no_grad()
def test_rows_of_many_requests_read_as_each_alone(name: str, page_size: int) -> None:
    """Requests of different length, prompt and number of hypotheses, which join at different steps, in float64."""
    example, family = EXAMPLES[name], FAMILIES[name]
    model = with_random_weights(family.get(family.generator)(family.get(family.config)(**example.config)), 0)
    decoder = model.model.decoder
    audio = example.inputs(torch.Generator().manual_seed(0))
    del audio["ids"]
    encoded = model.encode(audio)
    frames = encoded.attention_mask.sum(-1).tolist()
    p = PagePool(
        len(decoder.steps()), decoder.kv_heads, decoder.head_dim, 300, page_size=page_size, dtype=torch.float64
    )
    p.keys.fill_(torch.nan)
    p.values.fill_(torch.nan)
    generator = torch.Generator().manual_seed(1)
    beams, prompts, joins = (1, 3, 2), (4, 1, 2), (0, 2, 3)
    caches = [PagedCache(p, k, 30, n) for k, n in zip(beams, frames, strict=True)]
    paged.listen(decoder, encoded.last_hidden_state, caches)
    alone = [
        model.start_decoding({name: value[i : i + 1] for name, value in audio.items()}, k, 30)
        for i, k in enumerate(beams)
    ]
    steps, head = model.functions()
    for step in range(12):
        there = [i for i in range(3) if joins[i] <= step]
        by_count: dict[int, list[tuple[int, Ask]]] = {}
        for i in there:
            count = prompts[i] if joins[i] == step else 1
            ids = torch.randint(3, 50, (beams[i], count), generator=generator)
            by_count.setdefault(count, []).append((i, Ask(ids, None)))
        for asks in by_count.values():
            ids = torch.cat([ask.input_ids for _, ask in asks])
            got = head(paged.read(decoder, steps, ids, [caches[i] for i, _ in asks]))
            expected = torch.cat([model.decode(ask.input_ids, alone[i]) for i, ask in asks])
            torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)
        for i in there:
            rows = torch.randint(beams[i], (beams[i],), generator=generator)
            caches[i].follow(rows.tolist())
            alone[i].reorder(rows)
    for cache in caches:
        cache.free()
    assert p.in_use == 0
