"""The engine: every text as if alone, whatever else is in flight and whatever goes wrong beside it."""

import asyncio
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_cohere
import tiny_moonshine
import tiny_speech_to_text
import torch
from media import encode, save

from fastspeech import AudioError, Engine, listener
from fastspeech.generation.pages import PagePool
from fastspeech.layers import paged
from fastspeech.recognition import PROMPT_OPTIONS, Recogniser
from fastspeech.requests import Handle
from fastspeech.transcripts import Transcript

TINY = {
    "cohere": lambda: (tiny_cohere.model(), tiny_cohere.processor()),
    "moonshine": lambda: (tiny_moonshine.model(), tiny_moonshine.processor()),
    "speech_to_text": lambda: (tiny_speech_to_text.model(), tiny_speech_to_text.processor()),
}

MEMORY = 1 << 20
"""Bytes of pages, for what comes at random."""

AHEAD = 60.0
"""Seconds of audio that are loaded ahead of it."""


GROWTH = 400e6
"""Bytes that the process may grow by meanwhile: what is loaded ahead, and what encoders of chunks of 30 s take."""


@cache
def ears(name: str) -> tuple[Any, Any]:
    """A model that no engine has."""
    return TINY[name]()


def clip(seconds: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).standard_normal(int(16000 * seconds))
    return (0.1 * noise).astype(np.float32)


@pytest.fixture(autouse=True)
def listening_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads encode, as they do with more than one core."""
    monkeypatch.setattr(listener, "threads_beside", lambda device: 2)


@contextmanager
def engine(name: str = "moonshine", **options: Any) -> Iterator[Engine]:
    """An engine that at its end has lost no page."""
    made = Engine(*TINY[name](), **{"memory": 1 << 22, **options})
    try:
        yield made
    finally:
        made.close(wait=False)
        assert (made.pool.in_use, made.pool.reserved, made._feeder.seconds) == (0, 0, pytest.approx(0.0, abs=1e-9))
        assert not any(thread.is_alive() for thread in made._threads)


def listen_when_loaded(e: Engine, seconds: float) -> None:
    """Let the engine encode nothing before so much audio waits for it."""
    listen = e._listener.listen

    def when_all_are_there() -> bool:
        with e._lock:
            assert e._lock.wait_for(lambda: e._feeder.loaded > seconds - 0.01, 60)
        return listen()

    e._listener.listen = when_all_are_there  # type: ignore[method-assign]


def alone(name: str, audio: Any, **options: Any) -> Transcript:
    """What `generate` writes of a recording, chunk after chunk, with nothing beside them."""
    model, processor = ears(name)
    recogniser = Recogniser(model, processor)
    seed = options.pop("seed", 0)
    details = options.pop("word_timestamps", False), options.pop("confidence", False)
    prompt = recogniser.prompt(options)
    options = {key: value for key, value in options.items() if key not in PROMPT_OPTIONS}
    recording = recogniser.load(audio, 0)
    for chunk in recording.chunks:
        inputs = recogniser.inputs([chunk], prompt)
        length = inputs["decoder_input_ids"].shape[1] if "decoder_input_ids" in inputs else 1
        limits = recogniser.limits([chunk], options, length)
        limit = limits[0] if isinstance(limits, list) else limits
        torch.manual_seed(seed + (chunk.index or 0))
        rows = model.generate(**inputs, **{**options, "max_new_tokens": limit})
        recogniser.take(chunk, rows[0].tolist(), limit, options, length)
        if any(details):
            with torch.no_grad():
                encoded = {"encoder_outputs": model.encode(inputs)}
            first = recogniser.first(options, length)
            recogniser.read_again([chunk], encoded, rows, first, with_words=details[0])
    return recogniser.transcript(recording, prompt.get("language"), details)


def options_at_random(chance: random.Random, name: str) -> dict[str, Any]:
    options: dict[str, Any] = {"max_new_tokens": chance.randint(1, 24)}
    kind = chance.choice(["greedy", "greedy", "beams", "drawn", "rules", "details"])
    if kind == "beams":
        options |= {"num_beams": chance.randint(2, 5), "length_penalty": chance.choice([-1.0, 0.0, 1.0, 2.0])}
    elif kind == "drawn":
        options |= {"do_sample": True, "temperature": 2.0, "top_k": 9, "seed": chance.randint(0, 999)}
    elif kind == "rules":
        options |= {"no_repeat_ngram_size": 2, "repetition_penalty": 1.3}
    elif kind == "details":
        options |= {"word_timestamps": True, "confidence": True}
    if name == "cohere":
        options["language"] = chance.choice(["en", "de"])
    return options


def files_at_random(chance: random.Random, folder: Path, count: int, longest: float) -> list[Path]:
    """Recordings of 0.3 s to `longest`, one of a file that is no audio."""
    files = []
    for number in range(count):
        seconds = longest if number == 0 else 0.3 * (longest / 0.3) ** chance.random()
        files.append(save(folder / f"{number}.wav", encode(clip(seconds, number)[None], 16000)))
    return [*files, save(folder / "broken.wav", b"not audio" * 30)]


class Growth:
    """By how many bytes the resident memory of this process grew at the most; 0 where there is no /proc."""

    def __enter__(self) -> "Growth":
        self.bytes = 0
        if Path("/proc/self/clear_refs").exists():
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
            self.bytes = -self._peak()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bytes += self._peak() if self.bytes else 0

    @staticmethod
    def _peak() -> int:
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])


def check_at_random(name: str, folder: Path, requests: int, files: int, seed: int, longest: float) -> None:
    chance = random.Random(seed)
    recordings = files_at_random(chance, folder, files, longest)
    asked: list[tuple[Handle, Path, dict[str, Any]]] = []
    cancelled = set()
    with Growth() as growth, engine(name, memory=MEMORY, max_rows=12, ahead=AHEAD) as e:
        for _ in range(requests):
            recording, options = chance.choice(recordings), options_at_random(chance, name)
            asked.append((e.submit(recording, **options), recording, options))
            if chance.random() < 0.16:
                # The newest, which has not ended, or any.
                number = chance.choice([len(asked) - 1, chance.randrange(len(asked))])
                if asked[number][0].cancel():
                    cancelled.add(number)
            if chance.random() < 0.2:
                time.sleep(0.05 * chance.random())
        assert not wait([handle._request.future for handle, *_ in asked], 1200).not_done
        done = e.summary()
    assert done.requests == requests and done.cancelled == len(cancelled) > 0
    assert 0 < done.peak_pages <= done.pages and e.pool.keys.nbytes + e.pool.values.nbytes <= MEMORY
    print(f"{name}: {growth.bytes / 1e6:.0f} MB more, {done}, {done.realtime:.0f} x real time")
    assert growth.bytes <= GROWTH
    expected: dict[str, Transcript] = {}
    for number, (handle, recording, options) in enumerate(asked):
        if number in cancelled:
            with pytest.raises(CancelledError):
                handle.result(0)
        elif recording.stem == "broken":
            with pytest.raises(AudioError, match="broken"):
                handle.result(0)
        else:
            key = f"{recording} {options}"
            if key not in expected:
                expected[key] = alone(name, recording, **options)
            assert_same(handle.result(0).transcript, expected[key])


def assert_same(found: Transcript, expected: Transcript) -> None:
    """Texts and times to the letter; probabilities are sums in another order."""
    assert (found.file, found.text, found.language) == (expected.file, expected.text, expected.language)
    for mine, theirs in zip(found.segments, expected.segments, strict=True):
        plain = {"words": (), "tokens": ()}
        assert replace(mine, **plain) == replace(theirs, **plain)
        for ours, other in ((mine.words, theirs.words), (mine.tokens, theirs.tokens)):
            assert [replace(each, confidence=0) for each in ours] == [replace(each, confidence=0) for each in other]
            assert [each.confidence for each in ours] == pytest.approx([each.confidence for each in other], abs=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_requests_at_random_are_as_if_alone(name: str, tmp_path: Path) -> None:
    check_at_random(name, tmp_path, 24, 8, 0, 9.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_thousand_requests_at_random_are_as_if_alone(name: str, tmp_path: Path) -> None:
    """A third of them for each model, an hour and a half of audio, which would not fit into `GROWTH` at once."""
    check_at_random(name, tmp_path, 334, 60, 1, 90.0)


@pytest.mark.parametrize("name", TINY)
def test_chunks_that_are_encoded_together_are_as_if_alone(name: str) -> None:
    seconds = (0.7, 3.1, 2.2, 1.9, 4.0, 2.2)
    clips = [clip(length, number) for number, length in enumerate(seconds)]
    with engine(name, max_seconds=20.0) as e:
        sizes = []
        encode = e.model.encode
        e.model.encode = lambda inputs: (sizes.append(len(next(iter(inputs.values())))), encode(inputs))[1]
        listen_when_loaded(e, sum(seconds))
        handles = [e.submit(audio, max_new_tokens=12) for audio in clips]
        texts = [handle.result(60).text for handle in handles]
    assert max(sizes) > 1
    assert texts == [alone(name, audio, max_new_tokens=12).text for audio in clips]


def test_a_request_that_can_never_fit_is_refused_and_one_that_does_not_fit_now_waits() -> None:
    with engine(memory=60_000, max_rows=64) as e:
        fits = [e.submit(clip(1.0, n), max_new_tokens=6, num_beams=2) for n in range(12)]
        never = e.submit(clip(30.0), max_new_tokens=190, num_beams=8)
        with pytest.raises(ValueError, match="give it more memory"):
            never.result(60)
        assert [h.result(60).text for h in fits] == [
            alone("moonshine", clip(1.0, n), max_new_tokens=6, num_beams=2).text for n in range(12)
        ]
        assert e.summary().peak_pages <= e.pool.pages
        with pytest.raises(ValueError, match="max_rows"):
            e.submit(clip(1.0), num_beams=65).result(60)


def test_what_is_loaded_ahead_is_bounded() -> None:
    most = 0.0
    with engine(ahead=2.0, workers=3) as e:
        handles = [e.submit(clip(1.5, n), max_new_tokens=4) for n in range(12)]
        while not all(handle.done() for handle in handles):
            most = max(most, e._feeder.seconds)
            time.sleep(0.0005)
        assert e.summary().requests == 12
    # One worker after another may find less than 2 s there, and bring 1.5 s.
    assert 0 < most <= 2.0 + 3 * 1.5


class Fault(Exception):
    pass


def test_rows_that_are_free_are_filled_before_a_step_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    all_wait, read, rows = threading.Event(), paged.read, []

    def counted(decoder: Any, steps: Any, ids: torch.Tensor, caches: Any) -> torch.Tensor:
        rows.append(len(ids))
        return read(decoder, steps, ids, caches)

    monkeypatch.setattr(paged, "read", counted)
    with engine() as e:
        encode = e.model.encode

        def held_back(*inputs: Any) -> Any:
            all_wait.wait(60)
            return encode(*inputs)

        monkeypatch.setattr(e.model, "encode", held_back)
        handles = [e.submit(clip(0.5, n), max_new_tokens=4, min_new_tokens=4) for n in range(5)]
        with e._lock:
            # The first batch, of however many, is held back meanwhile.
            assert e._lock.wait_for(lambda: e._feeder.loaded >= 5 * 0.5, 60)
        all_wait.set()
        for handle in handles:
            handle.result(60)
    assert rows == [5] * 4


def test_an_error_in_one_requests_rule_or_callback_is_that_requests() -> None:
    def fail(*args: Any) -> Any:
        raise Fault

    steps = []

    def fail_later(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        steps.append(1)
        return fail() if len(steps) == 3 else scores

    def leave(*args: Any) -> Any:
        sys.exit()

    with engine() as e:
        gone = e.submit(clip(2.0), logits_processor=[leave])
        bad = [
            e.submit(clip(2.0), logits_processor=[fail]),
            e.submit(clip(2.0), logits_processor=[fail_later], num_beams=3),
            e.submit(clip(2.0), progress=fail),
            e.submit(clip(2.0), stopping_criteria=[fail]),
        ]
        good = e.submit(clip(3.0), max_new_tokens=9)
        for handle in bad:
            with pytest.raises(Fault):
                handle.result(60)
        with pytest.raises(SystemExit):
            gone.result(60)
        assert good.result(60).text == alone("moonshine", clip(3.0), max_new_tokens=9).text
        assert e.summary().failed == len(bad) + 1


@pytest.mark.parametrize("where", ["encode", "read"])
def test_an_allocation_that_fails_is_the_fault_of_one(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is taken again one by one; who fails alone has failed."""
    sizes = []
    with engine(max_seconds=60.0) as e:
        listen_when_loaded(e, 7.0)
        poisoned = int(16000 * 2.5)
        encode, read = e.model.encode, paged.read
        heavy = PagesOf(e, poisoned)

        def encode_or_fail(inputs: dict[str, Any]) -> Any:
            if where == "encode" and poisoned in inputs["attention_mask"].sum(-1).tolist():
                sizes.append(len(inputs["attention_mask"]))
                raise MemoryError("no room")
            return encode(inputs)

        def read_or_fail(decoder: Any, steps: Any, ids: torch.Tensor, caches: Any) -> Any:
            if where == "read" and caches[0].length > 3 and any(heavy.are(cache) for cache in caches):
                sizes.append(len(caches))
                raise MemoryError("no room")
            return read(decoder, steps, ids, caches)

        e.model.encode = encode_or_fail
        monkeypatch.setattr(paged, "read", read_or_fail)
        clips = [clip(1.0), clip(2.5), clip(2.0), clip(1.5)]
        handles = [e.submit(audio, max_new_tokens=9) for audio in clips]
        with pytest.raises(MemoryError):
            handles[1].result(60)
        for audio, handle in zip(clips, handles, strict=True):
            if audio is not clips[1]:
                assert handle.result(60).text == alone("moonshine", audio, max_new_tokens=9).text
    assert sizes == [4, 1]


class PagesOf:
    """Knows the cache of the job whose chunk has so many samples."""

    def __init__(self, e: Engine, samples: int) -> None:
        self.engine, self.samples = e, samples

    def are(self, cache: Any) -> bool:
        return any(job.cache is cache and len(job.chunk.samples) == self.samples for job in self.engine._running)


def test_pages_that_cannot_be_taken_are_the_fault_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    grow = PagePool.grow

    def short_of_memory(pool: PagePool, pages: int) -> None:
        if pages > 64:
            raise MemoryError("no room")
        grow(pool, pages)

    monkeypatch.setattr(PagePool, "grow", short_of_memory)
    with engine() as e:
        greedy = e.submit(clip(20.0), max_new_tokens=150, num_beams=8)
        modest = e.submit(clip(1.0), max_new_tokens=5)
        with pytest.raises(MemoryError):
            greedy.result(60)
        assert modest.result(60).text == alone("moonshine", clip(1.0), max_new_tokens=5).text


def test_pages_that_cannot_be_filled_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    listen, failed = paged.listen, []

    def once(*given: Any) -> None:
        if not failed:
            failed.append(given)
            raise MemoryError("no room")
        listen(*given)

    with engine() as e:
        monkeypatch.setattr(paged, "listen", once)
        with pytest.raises(MemoryError):
            e.submit(clip(2.0), max_new_tokens=5).result(60)
        good = e.submit(clip(1.0), max_new_tokens=5)
        assert good.result(60).text == alone("moonshine", clip(1.0), max_new_tokens=5).text


class Poisoned:
    """A file whose reading raises what it is given."""

    name = "poisoned"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def read(self, size: int = -1) -> bytes:
        raise self.error


@pytest.mark.parametrize("error", [SystemExit(1), MemoryError(), GeneratorExit()], ids=repr)
def test_whatever_happens_to_a_worker_it_is_one_requests(error: BaseException) -> None:
    with engine(workers=1) as e:
        bad = e.submit(Poisoned(error))
        good = e.submit(clip(1.0), max_new_tokens=5)
        with pytest.raises(type(error)):
            bad.result(60)
        assert good.result(60).text == alone("moonshine", clip(1.0), max_new_tokens=5).text


def test_an_error_of_the_engine_itself_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda arguments: None)
    with engine(ahead=2.0) as e:
        first = e.submit(clip(2.0), max_new_tokens=2)
        assert first.result(60).text
        batch = e._feeder.batch

        def fail_later(rows: int) -> Any:
            return 1 / 0 if e._running and submitted.is_set() else batch(rows)

        submitted = threading.Event()
        monkeypatch.setattr(e._feeder, "batch", fail_later)
        handles = [e.submit(clip(2.0, n), max_new_tokens=150) for n in range(20)]
        submitted.set()
        failed = 0
        for handle in handles:  # the first may have ended before
            try:
                assert handle.result(60).text
            except ZeroDivisionError:
                failed += 1
        assert failed
        with pytest.raises(RuntimeError, match="closed"):
            e.submit(clip(1.0))


@pytest.mark.parametrize("waits", [False, True])
def test_who_no_longer_waits_in_asyncio_holds_nobody_up(waits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def impatient(handle: Any) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(wait_for(handle), 0.05)

    async def wait_for(handle: Any) -> Any:
        return await handle

    with engine() as made:
        listen, gone = made._listener.listen, threading.Event()
        monkeypatch.setattr(made._listener, "listen", lambda: gone.wait(60) and listen())
        given_up, other = made.submit(clip(25.0), max_new_tokens=190), made.submit(clip(1.0), max_new_tokens=5)
        queued = [made.submit(clip(25.0, n), max_new_tokens=190) for n in range(3)]
        asyncio.run(impatient(given_up))
        for handle in queued:
            asyncio.run(impatient(handle))
        gone.set()
        assert other.result(60).text
        closing = threading.Thread(target=made.close, args=(waits,))
        closing.start()
        closing.join(60)
        assert not closing.is_alive()
        assert made.summary().cancelled == 4
        with pytest.raises(CancelledError):
            given_up.result(0)


def test_cancelled_requests_end_at_once_and_the_others_go_on() -> None:
    cancelled: list[bool] = []
    with engine() as e:
        gone = [e.submit(clip(20.0, n), max_new_tokens=150) for n in range(4)]
        stays = e.submit(clip(1.0), max_new_tokens=5)
        assert all(handle.cancel() for handle in gone)
        for handle in gone:
            with pytest.raises(CancelledError):
                handle.result(60)
        assert stays.result(60).text == alone("moonshine", clip(1.0), max_new_tokens=5).text
        assert not stays.cancel() and not gone[0].cancel()
        # At the last moment, when all is written.
        late = [e.submit(clip(1.0), max_new_tokens=5, progress=lambda *_: cancelled.append(late[0].cancel()))]
        with pytest.raises(CancelledError):
            late[0].result(60)
        assert cancelled == [True] and e.summary().cancelled == 5


def test_closing_finishes_or_gives_up() -> None:
    with engine() as made:
        handles = [made.submit(clip(2.0, n), max_new_tokens=9) for n in range(5)]
        made.close()
        assert all(handle.done() and handle.result().text for handle in handles)
        with pytest.raises(RuntimeError, match="closed"):
            made.submit(clip(1.0))
        made.close()
    with engine() as other:
        handles = [other.submit(clip(20.0, n), max_new_tokens=150) for n in range(8)]
        closing = threading.Thread(target=other.close, args=(False,))
        closing.start()
        closing.join(60)
        assert not closing.is_alive() and all(handle.done() for handle in handles)
        assert other.summary().cancelled > 0


def test_leaving_python_with_work_in_flight_does_not_hang() -> None:
    """Nor does it in a process that was forked from one with an engine."""
    code = (
        "import atexit, os, sys, time; sys.path.insert(0, 'tests')\n"
        "atexit.register(lambda: print('pages', e.pool.in_use, 'done', sum(handle.done() for handle in handles)))\n"
        "import numpy as np, tiny_moonshine\n"
        "from fastspeech import Engine\n"
        "e = Engine(tiny_moonshine.model(), tiny_moonshine.processor(), memory=1 << 22, ahead=30.0)\n"
        "audio = np.random.default_rng(0).standard_normal(16000 * 30).astype(np.float32)\n"
        "handles = [e.submit(audio, max_new_tokens=190) for _ in range(50)]\n"
        "while e.pool.in_use == 0: time.sleep(0.01)\n"
        "if os.fork():\n"
        "    os.wait()\n"
        "    print('leaving')\n"
        "else:\n"
        "    try: e.submit(audio)\n"
        "    except RuntimeError as error: print(error, flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 4, done.stderr
    assert "make an engine after a fork" in lines[0]
    assert lines[2:] == ["leaving", "pages 0 done 50"]


def test_results_come_as_they_are_done_and_in_asyncio() -> None:
    async def gather(handles: list[Any]) -> list[str]:
        return [result.text for result in await asyncio.gather(*map(wait, handles))]

    async def wait(handle: Any) -> Any:
        return await handle

    with engine() as e:
        long, short = e.submit(clip(9.0), max_new_tokens=150), e.submit(clip(1.0), max_new_tokens=2)
        assert list(e.as_completed([long, short])) == [short, long]
        texts = asyncio.run(gather([e.submit(clip(1.0), max_new_tokens=3), e.submit(clip(2.0), max_new_tokens=4)]))
        assert texts == [alone("moonshine", clip(s), max_new_tokens=n).text for s, n in ((1.0, 3), (2.0, 4))]


def test_times_and_progress_are_told() -> None:
    told = []
    with engine("cohere") as e:
        result = e.submit(clip(12.0), max_new_tokens=5, progress=lambda *seconds: told.append(seconds)).result(60)
        timing, done = result.timing, e.summary()
        assert e.submit(clip(1.0), max_new_tokens=1).result(60).timing.decoded > 0
    assert [total for _, total in told] == [12.0] * len(told) and told[-1][0] == 12.0 and len(told) == 3
    assert timing.audio == 12.0 and 0 < timing.encoded <= timing.total and 0 < timing.features <= timing.total
    assert 0 < timing.decoded <= timing.total and timing.realtime == 12.0 / timing.total
    assert done.audio == done.loaded == 12.0 and done.realtime == pytest.approx(12.0 / done.busy)


def test_arguments_are_checked_before_anything_runs() -> None:
    with engine() as e:
        with pytest.raises(ValueError, match="streamer"):
            e.submit(clip(1.0), streamer=object())
        with pytest.raises(ValueError, match="no choice of language"):
            e.submit(clip(1.0), language="en")
        with pytest.raises(ValueError, match="neither a parameter"):
            e.submit(clip(1.0), beams=2).result(60)
    with pytest.raises(ValueError, match="holds no page"):
        Engine(*TINY["moonshine"](), memory=10)
    with pytest.raises(ValueError, match="workers"):
        Engine(*TINY["moonshine"](), workers=0)
    with pytest.raises(ValueError, match="encoder-decoder"):
        Engine(object(), tiny_moonshine.processor())
