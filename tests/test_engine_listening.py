"""Encoding beside the decoder, by threads of its own or the engine's; and texts that no search writes."""

import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch
from test_engine import Fault, alone, clip, ears, engine

from fastspeech import Engine, listener
from fastspeech.layers import paged


@pytest.fixture(params=[0, 2])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of them that encode beside the engine's."""
    monkeypatch.setattr(listener, "threads_beside", lambda device: request.param)
    return int(request.param)


def wait_until(e: Engine, condition: Any) -> None:
    with e._lock:
        assert e._lock.wait_for(condition, 60)


def test_texts_are_as_if_alone_whoever_encodes(threads: int) -> None:
    asked = [(clip(0.5 + n % 3, n), {"max_new_tokens": 6 + n, "num_beams": 1 + n % 2}) for n in range(10)]
    with engine(max_rows=5) as e:
        assert len(e._listener.threads) == threads
        handles = [e.submit(audio, **options) for audio, options in asked]
        texts = [handle.result(60).text for handle in handles]
    assert texts == [alone("moonshine", audio, **options).text for audio, options in asked]


def test_a_text_is_written_while_other_chunks_are_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """With half of the rows taken, steps do not wait for further ones."""
    monkeypatch.setattr(listener, "threads_beside", lambda device: 2)
    expected = alone("moonshine", clip(1.0), max_new_tokens=20).text
    with engine(max_rows=2) as e:
        encode, go_on = e.model.encode, threading.Event()

        def held_back(inputs: dict[str, Any]) -> Any:
            if inputs["input_values"].shape[1] > 16000:
                assert go_on.wait(60)
            return encode(inputs)

        monkeypatch.setattr(e.model, "encode", held_back)
        first = e.submit(clip(1.0), max_new_tokens=20)
        wait_until(e, lambda: e._running)
        others = [e.submit(clip(2.0, n), max_new_tokens=5) for n in range(2)]
        assert first.result(60).text == expected
        assert not any(handle.done() for handle in others)
        go_on.set()
        for handle in others:
            assert handle.result(60).text


def test_a_chunk_that_is_given_up_while_it_is_encoded_takes_no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "threads_beside", lambda device: 2)
    with engine() as e:
        encode, go_on = e.model.encode, threading.Event()
        monkeypatch.setattr(e.model, "encode", lambda inputs: go_on.wait(60) and encode(inputs))
        gone = e.submit(clip(1.0), max_new_tokens=5)
        wait_until(e, lambda: e._listener._listening)
        (job,) = e._listener._listening
        # As the engine does with what it saw waiting a moment before.
        assert gone.cancel()
        e._drop(job, CancelledError())
        go_on.set()
        wait_until(e, lambda: not e._listener._listening)
        assert e._listener.heard == [] and not hasattr(job, "cache")
        assert e.submit(clip(1.0), max_new_tokens=5).result(60).text


def test_what_is_encoded_ahead_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where pages are few, by a batch, and what was begun before there was one."""
    monkeypatch.setattr(listener, "threads_beside", lambda device: 2)
    read, go_on = paged.read, threading.Event()
    monkeypatch.setattr(paged, "read", lambda *given: go_on.wait(60) and read(*given))
    with engine(memory=5 * 4096, max_seconds=2.0) as e:
        handles = [e.submit(clip(1.0, n), max_new_tokens=5) for n in range(12)]
        wait_until(e, lambda: e._feeder.loaded > 11.9 and e._running and not e._listener.is_busy())
        with e._lock:
            heard = sum(job.seconds for job in e._listener.heard)
        assert 2.0 <= heard < 2.0 + 2 * 2.0
        go_on.set()
        for handle in handles:
            assert handle.result(60).text


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_what_ends_a_thread_that_encodes_leaves_nobody_waiting(
    error: BaseException, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    with engine() as e:
        encode, go_on = e.model.encode, threading.Event()

        def end(inputs: dict[str, Any]) -> Any:
            if inputs["input_values"].shape[1] < 16000 * 5:
                return encode(inputs)
            assert go_on.wait(60)
            raise error

        monkeypatch.setattr(e.model, "encode", end)
        written = e.submit(clip(1.0), max_new_tokens=190)
        wait_until(e, lambda: e._running)
        handles = [e.submit(clip(6.0, n), max_new_tokens=9) for n in range(6)]
        go_on.set()
        for handle in handles:
            with pytest.raises(type(error)):
                handle.result(60)
        if isinstance(written._request.future.exception(60), BaseException):
            assert isinstance(written._request.future.exception(), type(error))
        with pytest.raises(RuntimeError, match="closed"):
            e.submit(clip(1.0))


def plain(e: Engine) -> Engine:
    """An engine whose model has no rules of its own, as the one that texts alone are written with."""
    for model in (e.model, ears("moonshine")[0]):
        model.generation_config.suppress_tokens = None
    return e


@pytest.fixture
def own_ears() -> Any:
    ears.cache_clear()
    yield
    ears.cache_clear()


@pytest.mark.usefixtures("own_ears")
def test_texts_that_need_no_search_are_written_beside_searches() -> None:
    """By ends and limits of their own, prompts of several tokens and one."""
    asked = [
        {"max_new_tokens": 3},
        {"max_new_tokens": 30, "num_beams": 3},
        {"max_new_tokens": 30},
        {"max_new_tokens": 17, "do_sample": True, "seed": 3},
        {"max_new_tokens": 24, "eos_token_id": list(range(0, 500, 9))},
        {"max_new_tokens": 24, "eos_token_id": []},
        {"max_new_tokens": 9, "no_repeat_ngram_size": 2},
        {"max_length": 12},
    ]
    with engine(max_rows=16) as made:
        e, searched = plain(made), set()
        add = e.searcher.add

        def noted(*given: Any) -> None:
            add(*given)
            searched.update(job.request.number for job in e.searcher._going)

        e.searcher.add = noted  # type: ignore[method-assign]
        handles = [e.submit(clip(1.5, n), **options) for n, options in enumerate(asked)]
        texts = [handle.result(60).text for handle in handles]
        assert searched == {1, 3, 6} and not e.searcher._texts and not e.searcher._going
    assert texts == [alone("moonshine", clip(1.5, n), **options).text for n, options in enumerate(asked)]
    assert len(set(map(len, texts))) > 3


@pytest.mark.usefixtures("own_ears")
def test_a_read_that_fails_is_the_fault_of_one_text(monkeypatch: pytest.MonkeyPatch) -> None:
    read = paged.read
    with engine() as made:
        e = plain(made)

        def read_or_fail(decoder: Any, steps: Any, ids: torch.Tensor, caches: Any) -> Any:
            bad = [job.cache for job in e._running if len(job.chunk.samples) == 40000]
            if caches[0].length > 3 and any(cache in bad for cache in caches):
                raise Fault
            return read(decoder, steps, ids, caches)

        monkeypatch.setattr(paged, "read", read_or_fail)
        clips = [clip(1.0), clip(2.5), clip(2.0), clip(1.5)]
        handles = [e.submit(audio, max_new_tokens=9) for audio in clips]
        with pytest.raises(Fault):
            handles[1].result(60)
        for audio, handle in zip(clips, handles, strict=True):
            if audio is not clips[1]:
                assert handle.result(60).text == alone("moonshine", audio, max_new_tokens=9).text
