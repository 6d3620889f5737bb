"""`fastspeech transcribe --stream`: one recording, and its words as soon as they are recognised."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from io import BufferedReader
from types import FrameType
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from fastspeech.audio import load_audio
from fastspeech.audio.pcm import pcm_pieces
from fastspeech.auto import AutoConfig
from fastspeech.pipelines import pipeline
from fastspeech.streaming import MODEL_TYPE, StreamEvent, StreamingTranscriber

_PIECE_S = 0.08

STANDARD_INPUT = "-"


class _Interrupt:
    """Ctrl-C ends a wait at once, and a step when it is done; the second one ends everything."""

    def __init__(self) -> None:
        self.asked = self.waiting = False

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        again, self.asked = self.asked, True
        if self.waiting or again:
            raise KeyboardInterrupt

    def until(self, pieces: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
        """The pieces that come before Ctrl-C."""
        while not self.asked:
            try:
                self.waiting = True
                piece = next(pieces, None)
            except KeyboardInterrupt:
                return
            finally:
                self.waiting = False
            if piece is None:
                return
            yield piece


def stream(
    source: str,
    model: str,
    *,
    as_json: bool = False,
    full_speed: bool = False,
    encoding: str = "s16le",
    rate: int = 24000,
    **options: Any,
) -> None:
    """Print the words of one recording to standard output while it is heard.

    As text, each word when it is complete; as JSON, an object a line for each `StreamEvent`, without its slot, with the
    text in the last one only, and times rounded to milliseconds. Ctrl-C ends the recording there.

    Args:
        source: what `load_audio` takes by name, heard at the pace it was spoken; or "-" for standard input.
        model: folder or hub id of a Kyutai STT checkpoint.
        full_speed: hear a file as fast as the model can.
        encoding, rate: of standard input.
        options: `device` and `dtype` of `pipeline`.

    Raises:
        AudioError: the recording cannot be read.
        CheckpointError, OSError: the checkpoint cannot be loaded.
        ValueError: it is another model's.
    """
    model_type = AutoConfig.from_pretrained(model).model_type
    if model_type != MODEL_TYPE:
        raise ValueError(f"{model}: --stream needs a Kyutai STT checkpoint, and this is of {model_type}")
    loaded = pipeline(model=model, **options)
    transcriber = StreamingTranscriber(loaded.model, loaded.processor)
    if source == STANDARD_INPUT:
        pieces = pcm_pieces(cast(BufferedReader, sys.stdin.buffer), encoding, rate, transcriber.sampling_rate)
    else:
        pieces = _spoken(source, transcriber.sampling_rate, full_speed)
    write = _write_json if as_json else _Text()
    slot = transcriber.open()
    with _Interrupt() as interrupt:
        for piece in interrupt.until(pieces):
            transcriber.push(slot, piece)
            _drain(transcriber, write)
        transcriber.flush(slot)
        _drain(transcriber, write)


def _spoken(source: str, rate: int, full_speed: bool) -> Iterator[NDArray[np.float32]]:
    samples = load_audio(source, sampling_rate=rate)
    size = round(_PIECE_S * rate)
    began = time.monotonic()
    for first in range(0, len(samples), size):
        piece = samples[first : first + size]
        if not full_speed:
            time.sleep(max(0.0, began + (first + len(piece)) / rate - time.monotonic()))
        yield piece


def _drain(transcriber: StreamingTranscriber, write: Callable[[StreamEvent], None]) -> None:
    while transcriber.ready:
        for event in transcriber.step():
            write(event)


class _Text:
    """Prints each word when it is complete, and a line end behind the last."""

    def __init__(self) -> None:
        self._printed = 0

    def __call__(self, event: StreamEvent) -> None:
        if event.kind in ("word", "end"):
            print(event.text[self._printed :], end="\n" if event.kind == "end" else "", flush=True)
            self._printed = len(event.text)


def _write_json(event: StreamEvent) -> None:
    fields: dict[str, Any] = {"kind": event.kind}
    if event.kind == "end":
        fields["text"] = event.text
    for name in ("time", "word", "start", "end", "pause"):
        value = getattr(event, name)
        if value is not None:
            fields[name] = round(value, 3) if isinstance(value, float) else value
    print(json.dumps(fields, ensure_ascii=False), flush=True)
