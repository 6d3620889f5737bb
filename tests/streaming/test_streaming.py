"""Streams: each as if alone, whatever the others do and however its audio comes."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_cohere
import torch
from numpy.typing import NDArray

from fastspeech import (
    AudioError,
    KyutaiSpeechToTextForConditionalGeneration,
    QueueFullError,
    StreamEvent,
    StreamingError,
    StreamingTranscriber,
)
from fastspeech.models.kyutai_stt.words import WordChange, WordTracker

Samples = NDArray[np.float32]
RATE, FRAME = tiny.RATE, tiny.FRAME
MODEL = tiny.model()


@pytest.fixture(scope="module")
def hf() -> Any:
    return tiny.hf_model()


@pytest.fixture(scope="module")
def converted(hf: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same, from its checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoint")
    hf.save_pretrained(folder)
    return KyutaiSpeechToTextForConditionalGeneration.from_pretrained(folder)


def transcriber(slots: int = 1, **options: Any) -> StreamingTranscriber:
    return StreamingTranscriber(MODEL, tiny.processor(), slots, **options)


def drain(streams: StreamingTranscriber) -> list[StreamEvent]:
    events = []
    while streams.ready:
        events += streams.step()
    return events


def alone(samples: Any, **options: Any) -> list[StreamEvent]:
    """The events of a stream that has a transcriber to itself, and its audio at once."""
    streams = transcriber(**options)
    slot = streams.open()
    streams.push(slot, samples)
    streams.flush(slot)
    return drain(streams)


def check_same(heard: Sequence[StreamEvent], expected: Sequence[StreamEvent]) -> None:
    """Probabilities may differ in their last bits, as sums over other numbers of rows do; slots have their own."""
    bare = [[dataclasses.replace(event, slot=0, pause=None) for event in events] for events in (heard, expected)]
    assert bare[0] == bare[1]
    ours, theirs = ([event.pause for event in events if event.pause] for events in (heard, expected))
    assert not ours or np.allclose(ours, theirs, rtol=0, atol=1e-5)


class Schedule:
    """Streams that join, leave and join again at random, with random pushes; the state of those that left is NaN."""

    def __init__(self, seed: int, audio: list[Samples], solos: list[list[StreamEvent]], alignment: str) -> None:
        self.random = np.random.default_rng(seed)
        self.audio, self.solos = audio, solos
        self.streams = transcriber(int(self.random.integers(1, 5)), alignment=alignment)
        self.recordings: dict[int, int] = {}
        self.rest: dict[int, Samples] = {}
        self.events: dict[int, list[StreamEvent]] = {}
        self.finished = 0

    def run(self, streams: int) -> None:
        opened = 0
        while opened < streams or self.events:
            action = self.random.choice(["join", "push", "leave", "step"], p=[0.3, 0.29, 0.01, 0.4])
            if action == "join" and opened < streams and self.streams.free_slots:
                self.join()
                opened += 1
            elif action == "push" and self.rest:
                self.push(int(self.random.choice(list(self.rest))))
            elif action == "leave" and self.events:
                self.leave(int(self.random.choice(list(self.events))))
            else:
                self.step(int(self.random.integers(1, 8)))

    def join(self) -> None:
        slot = self.streams.open()
        self.recordings[slot] = int(self.random.integers(len(self.audio)))
        self.rest[slot], self.events[slot] = self.audio[self.recordings[slot]], []

    def push(self, slot: int) -> None:
        size = round(np.exp(self.random.uniform(0, np.log(50_000))))
        self.streams.push(slot, self.rest[slot][:size])
        self.rest[slot] = self.rest[slot][size:]
        if not len(self.rest[slot]):
            self.streams.flush(slot)
            del self.rest[slot]

    def leave(self, slot: int) -> None:
        """Close a stream, over or not, and poison what it leaves."""
        row = self.streams._streams[slot].row
        self.streams.close(slot)
        tiny.poison(self.streams._state, row)
        self.rest.pop(slot, None)
        heard, expected = self.events.pop(slot), self.solos[self.recordings[slot]]
        over = bool(heard) and heard[-1].kind == "end"
        check_same(heard, expected if over else expected[: len(heard)])
        self.finished += over

    def step(self, times: int) -> None:
        for _ in range(times):
            for event in self.streams.step():
                self.events[event.slot].append(event)
        for slot in [slot for slot, events in self.events.items() if events and events[-1].kind == "end"]:
            self.leave(slot)


@pytest.fixture(scope="module")
def audio() -> list[Samples]:
    return [tiny.sound(size, seed) for seed, size in enumerate((0, 1, 1919, 4000, 10_000, 25_000, 50_000, 90_000))]


@pytest.fixture(scope="module", params=["moshi", "hf"])
def alignment(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def solos(audio: list[Samples], alignment: str) -> list[list[StreamEvent]]:
    return [alone(samples, alignment=alignment) for samples in audio]


def run_schedules(count: int, audio: list[Samples], solos: list[list[StreamEvent]], alignment: str) -> None:
    finished = 0
    for seed in range(count):
        schedule = Schedule(seed, audio, solos, alignment)
        schedule.run(4)
        finished += schedule.finished
    assert 2 * count < finished < 4 * count  # the others left


def test_in_random_schedules_each_stream_is_as_if_alone(
    audio: list[Samples], solos: list[list[StreamEvent]], alignment: str
) -> None:
    run_schedules(12, audio, solos, alignment)


@pytest.mark.slow
def test_in_two_hundred_random_schedules_each_stream_is_as_if_alone(
    audio: list[Samples], solos: list[list[StreamEvent]], alignment: str
) -> None:
    run_schedules(100, audio, solos, alignment)


@pytest.mark.parametrize("size", [1, 30_000, 61_000])
def test_a_stream_in_transformers_order_has_transformers_words(hf: Any, converted: Any, size: int) -> None:
    samples = tiny.sound(size)
    tokens = hf.generate(**tiny.hf_extractor()(samples, sampling_rate=RATE, return_tensors="pt"))[0, 1:].tolist()
    streams = StreamingTranscriber(converted, tiny.processor(), alignment="hf")
    check_tokens(streams, samples, tokens, lag=2)


def test_a_stream_has_the_words_of_generate() -> None:
    samples = tiny.sound(61_000)
    inputs = tiny.hf_extractor()(samples, sampling_rate=RATE, return_tensors="pt")
    for alignment, lag in (("moshi", 0), ("hf", 2)):
        tokens = MODEL.generate(**inputs, alignment=alignment, audio_window_size=1)[0, 1:].tolist()
        check_tokens(transcriber(alignment=alignment), samples, tokens, lag)


def check_tokens(streams: StreamingTranscriber, samples: Samples, tokens: list[int], lag: int) -> None:
    """Whether these tokens were what was heard, by their words and their times."""
    tracker = WordTracker(streams._decode, 12.5, 6, tiny.PREFIX + lag / 12.5)
    changes = [change for token in tokens for change in tracker.push(token)] + tracker.finish(len(samples) / RATE)
    slot = streams.open()
    streams.push(slot, samples)
    streams.flush(slot)
    heard = [event for event in drain(streams) if event.word is not None]
    assert len(changes) > 5
    assert [WordChange(event.kind, event.word, event.start, event.end, event.text) for event in heard] == changes


def test_a_push_is_taken_in_any_form() -> None:
    samples = tiny.sound(5000)
    expected = alone(samples)
    for form in (samples.tolist(), torch.from_numpy(samples), samples.astype(np.float64), samples[::-1][::-1]):
        check_same(alone(form), expected)


def test_pushed_samples_are_copied() -> None:
    streams = transcriber()
    slot = streams.open()
    buffer = tiny.sound(5000)
    streams.push(slot, buffer)
    buffer[:] = 0
    streams.flush(slot)
    check_same(drain(streams), alone(tiny.sound(5000)))


def test_one_step_serves_every_slot_that_has_a_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    step = MODEL.step

    def counted(tokens: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        batches.append(len(tokens))
        return step(tokens, *rest, **options)

    monkeypatch.setattr(MODEL, "step", counted)
    streams = transcriber(4)
    slots = [streams.open() for _ in range(4)]
    # the silence in front counts: 2400 samples, a frame and a quarter
    assert {event.slot for event in streams.step()} == set(slots) and batches == [4]
    assert not streams.ready and streams.step() == [] and batches == [4]
    for slot, samples in zip(slots, (FRAME, 3 * FRAME, 1439, 1440), strict=True):
        streams.push(slot, tiny.sound(samples))
    assert [{event.slot for event in streams.step()} for _ in range(4)] == [{0, 1, 3}, {1}, {1}, set()]
    assert batches == [4, 3, 1, 1]
    streams.push(slots[2], tiny.sound(1))
    assert {event.slot for event in streams.step()} == {2}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_waits_for_the_device_once() -> None:
    streams = StreamingTranscriber(tiny.model().to("cuda"), tiny.processor(), 4)
    for seed in range(3):
        streams.push(streams.open(), tiny.sound(10 * FRAME, seed))
    streams.step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            streams.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([warning for warning in caught if "synchroniz" in str(warning.message)]) == 1


def test_faults_leave_every_slot_as_it_was() -> None:
    """All of this, in the middle of a stream, changes nothing in it or beside it."""
    streams = transcriber(2, max_queue_s=1.0)
    slot, other = streams.open(), streams.open()
    samples, others = tiny.sound(40_000, 1), tiny.sound(40_000, 2)
    events = []
    for first in range(0, 40_000, 20_000):
        streams.push(slot, samples[first : first + 20_000])
        streams.push(other, others[first : first + 20_000])
        for wrong, fault in (
            (np.array([0.0, np.nan], np.float32), f"slot {slot}: 1 samples are NaN or infinite, the first at index 1"),
            ([np.inf], "NaN or infinite"),
            (np.zeros((2, 100), np.float32), r"shape \(2, 100\) where one mono clip"),
            (np.float32(1), r"shape \(\) where"),
            (np.zeros(10, np.int16), "int16 samples where floats .* divide them by their scale, e.g. 32768"),
            ("noise", "not an array of samples"),
        ):
            with pytest.raises(AudioError, match=fault):
                streams.push(slot, wrong)
        with pytest.raises(QueueFullError, match=rf"slot {slot}: 1\.\d\d s would wait, of 1 s at most"):
            streams.push(slot, tiny.sound(5000))
        with pytest.raises(StreamingError, match="all 2 slots are taken"):
            streams.open()
        for call in (streams.flush, streams.close, lambda slot: streams.push(slot, tiny.sound(1))):
            with pytest.raises(StreamingError, match="slot 7: it was never opened"):
                call(7)
        streams.push(slot, [])
        events += drain(streams)
    streams.flush(slot)
    for call in (streams.flush, lambda slot: streams.push(slot, tiny.sound(1))):
        with pytest.raises(StreamingError, match=f"slot {slot}: it was flushed"):
            call(slot)
    events += drain(streams)
    check_same([event for event in events if event.slot == slot], alone(samples))
    streams.close(slot)
    for call in (streams.flush, streams.close, lambda slot: streams.push(slot, tiny.sound(1))):
        with pytest.raises(StreamingError, match=f"slot {slot}: it was closed"):
            call(slot)
    streams.flush(other)
    events += drain(streams)
    check_same([event for event in events if event.slot == other], alone(others))


def test_the_queue_holds_its_seconds_of_pushed_audio() -> None:
    """The silence in front is none of it."""
    streams = transcriber(max_queue_s=2 * FRAME / RATE)
    slot = streams.open()
    streams.push(slot, tiny.sound(2 * FRAME))
    with pytest.raises(QueueFullError):
        streams.push(slot, tiny.sound(1))
    streams.step()  # of silence
    with pytest.raises(QueueFullError):
        streams.push(slot, tiny.sound(1))
    streams.step()  # of silence a quarter
    streams.push(slot, tiny.sound(1440))
    with pytest.raises(QueueFullError):
        streams.push(slot, tiny.sound(1))


def test_a_number_is_never_given_twice() -> None:
    streams = transcriber(2)
    first, second = streams.open(), streams.open()
    assert streams.free_slots == 0
    streams.close(first)
    assert streams.free_slots == 1
    assert streams.open() not in (first, second)
    with pytest.raises(StreamingError, match="it was closed"):
        streams.push(first, tiny.sound(1))


def test_events_tell_time_text_and_pauses() -> None:
    events = alone(tiny.sound(50_000))
    steps = [event for event in events if event.kind == "pause"]
    # of (50 000 + 2400 in front + 36 000 behind) / 1920 frames
    assert len(steps) == 46
    assert [event.time for event in steps[:3]] == pytest.approx([0.0, 0.06, 0.14])
    assert {len(event.pause or ()) for event in steps} == {2}
    assert all(0 < value < 1 for event in steps for value in event.pause or ())
    times = [event.time for event in events]
    assert times == sorted(times) and times[-1] == 50_000 / RATE
    assert [event.kind for event in events].count("end") == 1 and events[-1].kind == "end"
    words = [event for event in events if event.kind == "word"]
    assert len(words) > 5
    assert words[-1].text == events[-1].text
    ends = [event for event in events if event.kind == "end_word"]
    spans = [time for event in ends for time in (event.start, event.end)]
    assert spans == sorted(spans)
    assert [(event.word, event.start) for event in ends] == [(event.word, event.start) for event in words]


def test_the_time_of_an_event_is_that_of_the_last_frame_heard() -> None:
    """In transformers' order that is two frames before the last that came."""
    steps = [event for event in alone(tiny.sound(50_000), alignment="hf") if event.kind == "pause"]
    assert [event.time for event in steps[:5]] == pytest.approx([0.0, 0.0, 0.0, 0.06, 0.14])


def test_the_head_s_last_row_is_no_token_of_the_original() -> None:
    samples = tiny.sound(20_000)
    model = tiny.model()
    with torch.no_grad():
        model.lm_head.weight[-1] = 10 * model.lm_head.weight[5]
    streams = StreamingTranscriber(model, tiny.processor())
    slot = streams.open()
    streams.push(slot, samples)
    streams.flush(slot)
    check_same(drain(streams), alone(samples))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"slots": 0}, "slots must be positive, not 0"),
        ({"alignment": "kyutai"}, "alignment must be 'moshi' or 'hf', not 'kyutai'"),
        ({"max_queue_s": 0.01}, "max_queue_s must be at least a frame, 0.08 s, not 0.01"),
        ({"max_queue_s": float("nan")}, "max_queue_s must be"),
    ],
)
def test_wrong_arguments(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        transcriber(**options)


def test_another_model_and_another_rate() -> None:
    with pytest.raises(ValueError, match="only Kyutai STT models can be streamed, not cohere_asr"):
        StreamingTranscriber(tiny_cohere.model(), tiny_cohere.processor())
    processor = tiny.processor()
    processor.feature_extractor.sampling_rate = 16000
    with pytest.raises(ValueError, match="the feature extractor is for 16000 Hz, the model for 24000 Hz"):
        StreamingTranscriber(MODEL, processor)
