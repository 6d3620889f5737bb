"""`fastspeech transcribe --stream`: from a file, from a pipe, and until Ctrl-C."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_cohere
from media import encode, save
from numpy.typing import NDArray

from fastspeech import AutoModelForSpeechSeq2Seq, AutoProcessor, StreamEvent, StreamingTranscriber, load_audio
from fastspeech.cli import main

Captured = pytest.CaptureFixture[str]
RATE = tiny.RATE


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("kyutai"))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1 s."""
    return save(tmp_path_factory.mktemp("audio") / "a.wav", encode(tiny.sound(RATE)[None] / 30, RATE))


def expected(checkpoint: Path, samples: NDArray[np.float32]) -> list[StreamEvent]:
    processor = AutoProcessor.from_pretrained(checkpoint)
    streams = StreamingTranscriber(AutoModelForSpeechSeq2Seq.from_pretrained(checkpoint), processor)
    slot = streams.open()
    streams.push(slot, samples)
    streams.flush(slot)
    events = []
    while streams.ready:
        events += streams.step()
    return events


def run(checkpoint: Path, *options: str) -> int:
    return main(["transcribe", "--stream", "--model", str(checkpoint), "--device", "cpu", *options])


def test_the_words_of_a_file(checkpoint: Path, recording: Path, capsys: Captured) -> None:
    assert run(checkpoint, str(recording), "--full-speed") == 0
    words = expected(checkpoint, load_audio(recording, RATE))[-1].text
    assert len(words.split()) > 3
    assert capsys.readouterr().out == words + "\n"


def test_json_is_an_event_a_line(checkpoint: Path, recording: Path, capsys: Captured) -> None:
    assert run(checkpoint, str(recording), "--full-speed", "--format", "json") == 0
    events = expected(checkpoint, load_audio(recording, RATE))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len(events)
    for line, event in zip(lines, events, strict=True):
        assert line.pop("kind") == event.kind
        assert line.pop("text", None) == (event.text if event.kind == "end" else None)
        for name in ("time", "word", "start", "end", "pause"):
            value = getattr(event, name)
            assert line.pop(name, None) == (
                value if value is None or name == "word" else pytest.approx(value, abs=1e-3)
            )
        assert not line


def test_a_file_is_heard_at_the_pace_it_was_spoken(
    checkpoint: Path, recording: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock of its own: each 80 ms are there when they have passed."""
    now = 0.0
    pushes = []
    push = StreamingTranscriber.push

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def timed(self: StreamingTranscriber, slot: int, samples: Any) -> None:
        pushes.append((now, len(samples)))
        push(self, slot, samples)

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(StreamingTranscriber, "push", timed)
    assert run(checkpoint, str(recording)) == 0
    assert [at for at, _ in pushes] == pytest.approx(np.cumsum([size for _, size in pushes]) / RATE)
    assert len(pushes) == 13 and now == pytest.approx(1.0)


@pytest.mark.parametrize(("options", "kind", "scale"), [((), "<i2", 32768), (("--input-format", "f32le"), "<f4", 1)])
def test_standard_input(
    checkpoint: Path,
    capsys: Captured,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    kind: str,
    scale: int,
) -> None:
    raw = (tiny.sound(RATE) / 30 * scale).astype(kind)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw.tobytes())))
    assert run(checkpoint, "-", *options) == 0
    words = expected(checkpoint, raw.astype(np.float32) / np.float32(scale))[-1].text
    assert capsys.readouterr().out == words + "\n"


def test_standard_input_of_another_rate(checkpoint: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = np.zeros(8000, "<i2")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(raw.tobytes())))
    assert run(checkpoint, "-", "--input-rate", "8000", "--format", "json") == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["kind"] == "end" and last["time"] == pytest.approx(1.0, abs=0.001)


class Interrupted(io.BytesIO):
    """Standard input in which Ctrl-C comes after some reads, as long as nothing does."""

    def __init__(self, data: bytes, reads: int) -> None:
        super().__init__(data)
        self.reads = reads

    def read1(self, size: int | None = -1, /) -> bytes:
        self.reads -= 1
        if self.reads < 0:
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("a wait that Ctrl-C did not end")
        return super().read1(size)


def test_ctrl_c_in_a_wait_ends_with_what_was_heard(
    checkpoint: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tiny.sound(RATE).astype("<f4")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Interrupted(raw.tobytes(), 5)))
    before = signal.getsignal(signal.SIGINT)
    assert run(checkpoint, "-", "--input-format", "f32le") == 0
    # of 80 ms a read
    assert capsys.readouterr().out == expected(checkpoint, raw[: 5 * 1920])[-1].text + "\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_a_step_waits_for_its_end(
    checkpoint: Path, recording: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    step = StreamingTranscriber.step

    def interrupted(self: StreamingTranscriber) -> list[StreamEvent]:
        nonlocal steps
        steps += 1
        if steps == 6:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    monkeypatch.setattr(StreamingTranscriber, "step", interrupted)
    assert run(checkpoint, str(recording), "--full-speed") == 0
    # a frame of silence and a quarter in front, so that the sixth step is after the fifth push
    monkeypatch.undo()
    assert capsys.readouterr().out == expected(checkpoint, load_audio(recording, RATE)[: 5 * 1920])[-1].text + "\n"


def test_a_second_ctrl_c_ends_everything(
    checkpoint: Path, recording: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: StreamingTranscriber) -> list[StreamEvent]:
        signal.raise_signal(signal.SIGINT)
        return []

    monkeypatch.setattr(StreamingTranscriber, "step", interrupted)
    assert run(checkpoint, str(recording), "--full-speed") == 130


def test_in_a_pipe_words_come_before_the_sound_is_over(checkpoint: Path) -> None:
    """In a process of its own, whose standard input stays open until its first words are read."""
    command = [sys.executable, "-m", "fastspeech", "transcribe", "--stream", "-", "--model", str(checkpoint)]
    options = ["--device", "cpu", "--format", "json", "--input-format", "f32le"]
    process = subprocess.Popen(
        [*command, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(tiny.sound(RATE).astype("<f4").tobytes())
    process.stdin.flush()
    first = [json.loads(process.stdout.readline()) for _ in range(5)]
    assert any(event["kind"] == "partial" for event in first)
    process.stdin.close()
    assert json.loads(process.stdout.read().splitlines()[-1])["kind"] == "end"
    assert process.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["a", "b", "--model", "m"], "--stream hears one file"),
        (["a"], "--stream needs --model, a Kyutai STT checkpoint"),
        (["a", "--model", "m", "--format", "srt"], "--stream writes txt or json, not srt"),
        (["a", "--model", "m", "--language", "fr"], "--language does not go with --stream"),
        (["a", "--model", "m", "--output-dir", "x"], "--output-dir does not go with --stream"),
        (["a", "--model", "m", "--max-new-tokens", "4"], "--max-new-tokens does not go with --stream"),
        (["a", "--model", "m", "--input-rate", "8000"], "--input-rate is not for a file"),
        (["a", "--model", "m", "--input-format", "f32le"], "--input-format is not for a file"),
        (["-", "--model", "m", "--full-speed"], "--full-speed is not for standard input"),
        (["-", "--model", "m", "--input-rate", "0"], "--input-rate: invalid"),
    ],
)
def test_wrong_arguments(arguments: list[str], fault: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["transcribe", "--stream", *arguments])
    assert exit_.value.code == 2
    assert fault in capsys.readouterr().err


def test_options_of_streams_alone(capsys: Captured) -> None:
    for options in (["--full-speed"], ["--input-rate", "8000"], ["--input-format", "s16le"]):
        with pytest.raises(SystemExit):
            main(["transcribe", "a", *options])
        assert f"{options[0]} needs --stream" in capsys.readouterr().err


def test_faults(checkpoint: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(tiny_cohere.save(tmp_path / "cohere"), "a.wav") == 1
    assert "--stream needs a Kyutai STT checkpoint, and this is of cohere_asr" in capsys.readouterr().err
    assert run(tmp_path / "nothing", "a.wav") == 1
    assert "there is no folder" in capsys.readouterr().err
    assert run(checkpoint, str(tmp_path / "nothing.wav")) == 1
    assert "nothing.wav: cannot be opened" in capsys.readouterr().err
    nan = np.array([np.nan], "<f4").tobytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(nan)))
    assert run(checkpoint, "-", "--input-format", "f32le") == 1
    assert "NaN or infinite" in capsys.readouterr().err
