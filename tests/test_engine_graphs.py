"""The engine's greedy texts on the device alone, on the CPU: as elsewhere, with searches, cancellations and faults."""

import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

import pytest
import torch
from test_engine import TINY, alone, clip, ears, engine, options_at_random

from fastspeech import listener
from fastspeech.generation.pages import PagedCache, PagePool
from fastspeech.generation.seats import Look, Seats
from fastspeech.layers import paged, searcher
from fastspeech.layers.writer import Writer
from fastspeech.pipelines import AutomaticSpeechRecognitionPipeline
from tests.generation.tape import WAYS, as_on_a_device, as_on_a_gpu


@pytest.fixture(autouse=True)
def plain_models(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rules and beams keep texts from being written on the device; two of the little models have them of their own."""

    def plain(make: Callable[[], tuple[Any, Any]]) -> tuple[Any, Any]:
        model, processor = make()
        model.generation_config.suppress_tokens, model.generation_config.num_beams = None, 1
        return model, processor

    # As on a device, the engine's thread encodes.
    monkeypatch.setattr(listener, "threads_beside", lambda device: 0)
    for name, make in dict(TINY).items():
        monkeypatch.setitem(TINY, name, partial(plain, make))
    ears.cache_clear()
    yield
    ears.cache_clear()


def requests_at_random(name: str, count: int, seed: int) -> list[tuple[Any, dict[str, Any]]]:
    chance = random.Random(seed)
    asked = []
    for number in range(count):
        options = options_at_random(chance, name)
        asked.append((clip(min(6.0**chance.random() * 0.4, 3.0 if "seed" in options else 9.0), number), options))
    return asked


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", TINY)
def test_requests_at_random_are_as_without_seats(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy texts and all else, in a pool that grows, with some cancelled on the way."""
    asked = requests_at_random(name, 14, 1)
    expected = [alone(name, audio, **options) for audio, options in asked]
    WAYS[way](monkeypatch)
    with engine(name, memory=1 << 20, max_rows=6) as e:
        handles = []
        for number, (audio, options) in enumerate(asked):
            handles.append(e.submit(audio, **options))
            if number % 5 == 2:
                handles[-1].cancel()
            if number % 4 == 3:
                time.sleep(0.02)
        for number, (handle, one) in enumerate(zip(handles, expected, strict=True)):
            if number % 5 == 2 and handle._request.cancelled:
                with pytest.raises(CancelledError):
                    handle.result(120)
                continue
            found = handle.result(120).transcript
            assert [s.text for s in found.segments] == [s.text for s in one.segments], asked[number][1]
            assert found.truncated == one.truncated
            words = [(w.text, w.start) for s in found.segments for w in s.words]
            assert words == [(w.text, w.start) for s in one.segments for w in s.words]
        seats = e.writer._seats
        assert seats is not None and sum(seats.graphs.replays.values()) > 10
        assert not any(e.writer._at) and e.summary().tokens > 50
        step = e.searcher.reader.step
        assert step is not None and sum(step.graphs.replays.values()) > 10 and not e.searcher._going


@pytest.mark.parametrize("search", [{}, {"num_beams": 2}])
def test_a_step_is_recorded_again_where_the_pool_has_grown(
    search: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"max_new_tokens": 40, **search}
    expected = [alone("moonshine", clip(1.0, n), **options).text for n in range(4)]
    log = as_on_a_gpu(monkeypatch)
    with engine("moonshine", max_rows=4) as e:
        for n in (0, 1):
            assert e.submit(clip(1.0, n), **options).result(60).text == expected[n]
        recorded = len(log)
        assert e.submit(clip(1.0, 2), **options).result(60).text == expected[2]
        assert len(log) == recorded
        e.pool.grow(2 * e.pool.pages)
        assert e.submit(clip(1.0, 3), **options).result(60).text == expected[3]
        assert len(log) == recorded + 4
        assert (e.writer._seats is None) == bool(search) and (e.searcher.reader.step is None) == (not search)


def test_a_pipeline_records_its_steps_once(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [alone("moonshine", clip(1.0, n), max_new_tokens=40).text for n in range(4)]
    log = as_on_a_gpu(monkeypatch)
    model, processor = TINY["moonshine"]()
    recognise = AutomaticSpeechRecognitionPipeline(model, processor, batch_size=4)
    seats = []
    for _ in range(2):
        many = recognise([clip(1.0, n) for n in range(4)], max_new_tokens=40)
        one = recognise(clip(1.0, 0), max_new_tokens=40)
        assert [result["text"] for result in (*many, one)] == [*expected, expected[0]]
        (former,) = recognise._former.values()
        seats.append(former.writer._seats)
    # How many texts are beside one another is a matter of time.
    steps = seats[0].graphs
    assert seats[0] is seats[1] and steps.replays.keys() & {1, 2, 4}
    assert sum(f"into pool {steps._pool}," in line for line in log) == len(steps.replays)
    with torch.no_grad():
        model.proj_out.weight.copy_(model.proj_out.weight.flip(0))
    assert recognise(clip(1.0, 0), max_new_tokens=40)["text"] != expected[0]


@torch.no_grad()
def test_nothing_is_written_to_pages_of_a_text_that_was_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_device(monkeypatch)
    model, _ = TINY["moonshine"]()
    decoder = model.model.decoder
    pool = PagePool(len(decoder.layers), decoder.kv_heads, decoder.head_dim, 20)
    writer, caches = Writer(model, pool, 4), {}
    plan = model.planned(torch.zeros(1, 4000), eos_token_id=[], max_new_tokens=30)[3]
    for key in "ab":
        caches[key] = PagedCache(pool, 1, 30, 9)
        paged.listen(decoder, torch.randn(1, 9, decoder.config.hidden_size), [caches[key]])
        writer.add(key, caches[key], torch.tensor([[1, 5, 6]]), plan)
    assert writer.write() == []
    pages = {key: cache.tables[0] for key, cache in caches.items()}
    writer.remove("a")
    before = pool.keys.clone()
    for _ in range(3):
        assert writer.write() == []
    changed = (pool.keys != before).transpose(0, 1).flatten(1).any(1).nonzero().flatten().tolist()
    assert changed and set(changed) <= set(pages["b"])
    for _ in range(4):
        written = writer.write()
    ((key, text),) = written
    assert key == "b" and isinstance(text, torch.Tensor) and len(text) == 31


def test_a_text_joins_wider_seats_while_others_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """One much longer than those that the seats were made for, behind one that is under way."""
    asked = [(clip(5.0, 0), 190), (clip(15.0, 1), 190), (clip(0.5, 2), 9)]
    expected = [alone("moonshine", audio, max_new_tokens=most).text for audio, most in asked]
    as_on_a_device(monkeypatch)
    others, narrow, step = [], [], Seats.step

    def joined_by_others(self: Seats, rows: int) -> None:
        step(self, rows)
        if not narrow:
            narrow.append(self)
            others.extend(e.submit(audio, max_new_tokens=most) for audio, most in asked[1:])
            others_are_there.set()

    others_are_there = threading.Event()
    monkeypatch.setattr(Seats, "step", joined_by_others)
    with engine("moonshine", max_rows=4) as e:
        first = e.submit(asked[0][0], max_new_tokens=190)
        assert others_are_there.wait(60)
        assert [handle.result(60).text for handle in (first, *others)] == expected
        assert e.writer._seats is not narrow[0] and e.writer._seats.length >= 98 > narrow[0].length


def test_an_error_of_a_prompt_is_of_its_texts_and_of_a_step_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [alone("moonshine", clip(1.0, n), max_new_tokens=20).text for n in range(3)]
    as_on_a_device(monkeypatch)
    join, step = Seats.join, Seats.step
    failing = {"join": True, "step": False}

    def joined(self: Seats, at: Any, *rest: Any) -> None:
        if failing["join"]:
            failing["join"] = False
            raise torch.OutOfMemoryError("no memory")
        join(self, at, *rest)

    def stepped(self: Seats, rows: int) -> None:
        if failing["step"]:
            raise torch.OutOfMemoryError("no memory")
        step(self, rows)

    monkeypatch.setattr(Seats, "join", joined)
    monkeypatch.setattr(Seats, "step", stepped)
    with engine("moonshine", max_rows=4) as e:
        with pytest.raises(torch.OutOfMemoryError):
            e.submit(clip(1.0, 0), max_new_tokens=20).result(60)
        assert e.submit(clip(1.0, 1), max_new_tokens=20).result(60).text == expected[1]
        failing["step"] = True
        with pytest.raises(torch.OutOfMemoryError):
            e.submit(clip(1.0, 0), max_new_tokens=20).result(60)
        failing["step"] = False
        assert e.submit(clip(1.0, 2), max_new_tokens=20).result(60).text == expected[2]


def test_searches_wait_for_the_device_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that they want to know is on its way before the first of it is waited for."""
    options: list[dict[str, Any]] = [{"num_beams": 3}, {"do_sample": True, "seed": 5}, {"no_repeat_ngram_size": 2}]
    options = [{"max_new_tokens": 12, "eos_token_id": [500], **each} for each in options]
    expected = [alone("moonshine", clip(1.0, n), **each).text for n, each in enumerate(options)]
    as_on_a_gpu(monkeypatch)
    log: list[str] = []

    class Told(Look):
        def __init__(self, told: torch.Tensor) -> None:
            super().__init__(told)
            log.append("c")

        def known(self) -> torch.Tensor:
            log.append("w")
            return super().known()

    monkeypatch.setattr(searcher, "Look", Told)
    all_wait = threading.Event()
    with engine("moonshine", max_rows=8) as e:
        encode = e.model.encode
        monkeypatch.setattr(e.model, "encode", lambda *given: all_wait.wait(60) and encode(*given))
        handles = [e.submit(clip(1.0, n), **each) for n, each in enumerate(options)]
        with e._lock:
            assert e._lock.wait_for(lambda: e._feeder.loaded >= 3.0, 60)
        all_wait.set()
        assert [handle.result(60).text for handle in handles] == expected
    # At its last token a beam search has nothing to ask.
    assert re.fullmatch("(c{3}w{3}){5,}ccww", "".join(log))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", TINY)
def test_on_a_gpu_texts_are_those_of_steps_of_searches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastspeech import Engine

    asked = requests_at_random(name, 20, 2)
    texts = []
    for seated in (True, False):
        if not seated:
            monkeypatch.setattr(Writer, "takes", lambda self, plan: False)
        model, processor = TINY[name]()
        with Engine(model.to("cuda"), processor, memory=1 << 24, max_rows=8) as e:
            handles = [e.submit(audio, **options) for audio, options in asked if "seed" not in options]
            texts.append([handle.result(120).text for handle in handles])
            if seated:
                assert sum(e.writer._seats.graphs.replays.values()) > 10
        assert e.pool.in_use == e.pool.reserved == 0
    assert texts[0] == texts[1]
