"""Speech to text while it is spoken, many streams at once, with a Kyutai STT model."""

from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from fastspeech.audio.check import check_samples
from fastspeech.errors import QueueFullError, StreamingError
from fastspeech.generation import graphs
from fastspeech.layers.linear import direct
from fastspeech.models.kyutai_stt.model import KyutaiState
from fastspeech.models.kyutai_stt.words import WordChange, WordTracker

MODEL_TYPE = "kyutai_speech_to_text"

_LAGS = {"moshi": 0, "hf": 2}
"""Frames that the text of an alignment is later than that of the original."""


@dataclass(frozen=True)
class StreamEvent:
    """What was heard in a stream.

    Attributes:
        kind: "partial": a piece of a word came; "word": the word is complete; "end_word": its end is known;
            "pause": after each step, where the checkpoint can tell pauses; "end": the stream is over.
        slot: whose it is.
        time: seconds of the slot's audio that were heard by then.
        text: all text of the slot so far.
        word: what there is of the word; None in "pause" and "end".
        start, end: of the word, in seconds from the beginning of what was pushed; `end` only in "end_word".
        pause: the probabilities that speech pauses for 0.5, 1, 2 and 3 s; only in "pause".
    """

    kind: Literal["partial", "word", "end_word", "pause", "end"]
    slot: int
    time: float
    text: str
    word: str | None = None
    start: float | None = None
    end: float | None = None
    pause: tuple[float, ...] | None = None


class StreamingTranscriber:
    """Transcribes up to `slots` streams at once; each may begin and end at any time.

        transcriber = StreamingTranscriber(model, processor, slots=2)
        slot = transcriber.open()
        transcriber.push(slot, samples)
        for event in transcriber.step(): ...
        transcriber.flush(slot)  # and step() until the slot's "end"
        transcriber.close(slot)

    A stream's result is what it would be alone, however its audio is cut into pushes and whatever the other streams do;
    but matrix products may be summed in another order where other rows are beside it, which can tip a token whose
    probability was equal to the last bits with another's. Of one step, only tokens and pauses leave the device; on a
    GPU it is a CUDA graph, recorded when the transcriber is made, for each power of two of slots. Calls are for one
    thread.

    The silences that the checkpoint was trained with, which its feature extractor states, are put around each stream;
    times do not count them. They have the model's resolution of a frame (80 ms), and follow the rule of Kyutai's server
    (`fastspeech.models.kyutai_stt.words.WordTracker`).

    Args:
        model: a KyutaiSpeechToTextForConditionalGeneration.
        processor: of the model.
        slots: streams at once. The memory for all is taken now.
        alignment: "moshi", the order in which the original feeds frames to the model: the published error rates were
            measured with it, and its text comes earliest. "hf": transformers', two frames (160 ms) later, since it
            hears the first frame twice and feeds each a step late; the tokens are then those of `generate` with
            `audio_window_size=1`.
        max_queue_s: the most audio a slot may have waiting, in seconds.

    Raises:
        ValueError: another kind of model, an extractor of another rate, or an argument out of range.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        slots: int = 1,
        *,
        alignment: Literal["moshi", "hf"] = "moshi",
        max_queue_s: float = 60.0,
    ) -> None:
        model_type = getattr(getattr(model, "config", None), "model_type", None)
        if model_type != MODEL_TYPE:
            raise ValueError(f"only Kyutai STT models can be streamed, not {model_type or type(model).__name__}")
        if alignment not in _LAGS:
            raise ValueError(f"alignment must be 'moshi' or 'hf', not {alignment!r}")
        if slots < 1:
            raise ValueError(f"slots must be positive, not {slots}")
        config, extractor = model.config, processor.feature_extractor
        rate = config.codec_config.sampling_rate
        if extractor.sampling_rate != rate:
            raise ValueError(f"the feature extractor is for {extractor.sampling_rate} Hz, the model for {rate} Hz")
        if not max_queue_s * rate >= config.frame_size:
            raise ValueError(f"max_queue_s must be at least a frame, {config.frame_size / rate:g} s, not {max_queue_s}")
        self.model = model.eval()
        self.processor = processor
        self.slots = slots
        self.alignment = alignment
        self._delayed = alignment == "hf"
        self.max_queue_s = max_queue_s
        self.sampling_rate = rate
        self.frame_size = config.frame_size
        self._frame_rate = rate / config.frame_size
        self._prefix, self._suffix = extractor.silent_samples
        self._delay = int(extractor.audio_delay_seconds * self._frame_rate)
        self._streams: dict[int, _Stream] = {}
        self._opened = 0
        device = model.device
        self._state = model.start(slots)
        with torch.no_grad():
            self._head = (model.model.product(slots) or direct)(model.lm_head)
        self._tokens = torch.zeros(slots, dtype=torch.int64, device=device)
        self._codes = torch.zeros(slots, config.num_codebooks, dtype=torch.int64, device=device)
        if graphs.captures(device):
            self._record()

    @property
    def free_slots(self) -> int:
        """Streams that can still be opened."""
        return self.slots - len(self._streams)

    @torch.no_grad()
    def open(self) -> int:
        """Begin a stream; returns its number, by which the other methods know it, and which no later stream will have.

        Raises:
            StreamingError: all slots are taken.
        """
        taken = {stream.row for stream in self._streams.values()}
        row = next((row for row in range(self.slots) if row not in taken), None)
        if row is None:
            raise StreamingError(f"all {self.slots} slots are taken; close one, or take more slots from the start")
        lag = _LAGS[self.alignment]
        offset = self._prefix / self.sampling_rate + lag / self._frame_rate
        words = WordTracker(self._decode, self._frame_rate, self._delay, offset)
        self._state.reset(torch.tensor([row], device=self._tokens.device))
        config = self.model.config
        self._tokens[row] = config.bos_token_id if self.alignment == "hf" else config.vocab_size - 1
        self._codes[row] = config.audio_bos_token_id
        slot = self._opened
        self._opened += 1
        self._streams[slot] = _Stream(row, words, self._prefix)
        return slot

    def push(self, slot: int, samples: Any) -> None:
        """Put samples into a slot's queue.

        Args:
            samples: (n,) floats in [-1, 1] at `sampling_rate`, any n: an array, a tensor on any device, or a list. They
                are copied.

        Raises:
            AudioError: NaN or infinite samples, another shape, or no floats.
            QueueFullError: more would wait than `max_queue_s`.
            StreamingError: the slot is closed or flushed.
            In each case nothing is taken, and the slot goes on as if it had not been called.
        """
        stream = self._stream(slot)
        if stream.flushed:
            raise StreamingError(f"slot {slot}: it was flushed; close it and open another")
        clip = check_samples(samples, f"slot {slot}", minimum=0)
        waiting = stream.pushed + len(clip) - max(0, stream.steps * self.frame_size - self._prefix)
        if waiting > self.max_queue_s * self.sampling_rate:
            raise QueueFullError(
                f"slot {slot}: {waiting / self.sampling_rate:.2f} s would wait, of {self.max_queue_s:g} s at most; "
                "call step() more often, push less at a time, or raise max_queue_s"
            )
        stream.pushed += len(clip)
        stream.append(clip.cpu().numpy().copy())

    def flush(self, slot: int) -> None:
        """Say that a slot's audio is over: silence follows, so that the last words come out, and then the "end".

        The silence is heard as fast as `step` is called. Of the whole, what makes no full frame is left out, as by the
        feature extractor and `generate`.

        Raises:
            StreamingError: the slot is closed or flushed.
        """
        stream = self._stream(slot)
        if stream.flushed:
            raise StreamingError(f"slot {slot}: it was flushed before")
        stream.append(np.zeros(self._suffix, np.float32))
        stream.flushed = True

    def close(self, slot: int) -> None:
        """Give a slot free, at any time; what it has not yet heard is forgotten.

        Raises:
            StreamingError: it is closed already.
        """
        self._stream(slot)
        del self._streams[slot]

    @property
    def ready(self) -> bool:
        """Whether `step` has anything to do."""
        return any(self._due(stream) for stream in self._streams.values())

    def step(self) -> list[StreamEvent]:
        """Hear one frame of every slot that has one, all in one batch, and tell what came of it, slot by slot.

        Returns at once where no slot has a whole frame. An empty list does not say that: see `ready`.
        """
        due = {slot: stream for slot, stream in self._streams.items() if self._due(stream)}
        hearing = {slot: stream for slot, stream in due.items() if stream.queued >= self.frame_size}
        outputs = dict(zip(hearing, self._hear(list(hearing.values())), strict=True)) if hearing else {}
        return [event for slot, stream in due.items() for event in self._tell(slot, stream, outputs.get(slot))]

    @torch.no_grad()
    def _hear(self, streams: list["_Stream"]) -> list[list[float]]:
        """One step of the model for these streams: the token of each, and its probabilities of pauses."""
        device, frames = self._tokens.device, [stream.next_frame(self.frame_size, self._delayed) for stream in streams]
        rows, first = [stream.row for stream in streams], [stream.steps == 0 for stream in streams]
        if graphs.captures(device):
            bucket = self._bucket(max(rows) + 1)
            heard = np.zeros((bucket, 1, self.frame_size), np.float32)
            flags = np.zeros((2, bucket), bool)
            heard[rows, 0], flags[:, rows] = frames, [[True] * len(rows), first]
            self._samples[:bucket] = graphs.upload(torch.from_numpy(heard), device)
            self._flags[:, :bucket] = graphs.upload(torch.from_numpy(flags), device)
            self._graphs.run(bucket)
            of_each = self._told[:bucket].tolist()
            return [of_each[row] for row in rows]
        slots, new = torch.tensor(rows, device=device), torch.tensor(first, device=device)
        samples = torch.from_numpy(np.stack(frames)[:, None]).to(device)
        codes, tokens, told = self._frame(samples, new, self._codes[slots], self._tokens[slots], self._state, slots)
        self._codes[slots], self._tokens[slots] = codes, tokens
        return told.tolist()

    def _frame(
        self,
        samples: torch.Tensor,
        first: torch.Tensor,
        codes: torch.Tensor,
        tokens: torch.Tensor,
        state: KyutaiState,
        slots: torch.Tensor | None = None,
        active: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The codes of one frame, the tokens that follow, and these with the probabilities of pauses, (rows, 1 + heads)
        float64, of rows of which `codes` and `tokens` are the last; `first` (rows,) bool is true where there are none.
        """
        model = self.model
        heard = model.codec_model.encode_frames(samples, state.codec, slots, active)[..., 0]
        # Either begins without a frame; then the original goes on with the second one, and transformers with the first.
        fed = codes if self._delayed else torch.where(first[:, None], codes, heard)
        hidden = model.step(tokens, fed, state, slots, active=active)
        logits = self._head(hidden)
        # The last row of the head is no token of the original's: its weights are zeros.
        following = (logits if self._delayed else logits[:, :-1]).argmax(-1)
        # In float64, which holds every token, it is one copy, and the only wait for the device.
        told = torch.cat((following[:, None].double(), model.pause_probabilities(hidden).double()), 1)
        return heard, following, told

    def _bucket(self, rows: int) -> int:
        """The rows of a recorded step for so many slots: the next power of two, or all slots."""
        return graphs.bucket_of(rows, self.slots)

    @torch.no_grad()
    def _record(self) -> None:
        """Record the step of the first slots, for as many of them as there may have to be, before a stream could wait
        for it."""
        device = self._tokens.device
        with torch.inference_mode(False), torch.device(device):
            self._samples = torch.zeros(self.slots, 1, self.frame_size)
            self._flags = torch.zeros(2, self.slots, dtype=torch.bool)  # who is heard, and who for the first time
            self._told = torch.zeros(self.slots, 1 + len(self.model.extra_heads), dtype=torch.float64)
        self._graphs = graphs.Graphs(device)
        bucket = self._bucket(self.slots)
        while bucket not in self._graphs:
            self._graphs.record(bucket, partial(self._frame_of_first, bucket, self._state.first(bucket)))
            bucket = self._bucket(-(-bucket // 2))

    def _frame_of_first(self, rows: int, state: KyutaiState) -> None:
        """A frame of those of the first slots that are heard, in static memory."""
        active, first = self._flags[:, :rows].unbind()
        codes, tokens = self._codes[:rows], self._tokens[:rows]
        heard, following, told = self._frame(self._samples[:rows], first, codes, tokens, state, active=active)
        codes.copy_(torch.where(active[:, None], heard, codes))
        tokens.copy_(torch.where(active, following, tokens))
        self._told[:rows].copy_(told)

    def _tell(self, slot: int, stream: "_Stream", output: list[float] | None) -> list[StreamEvent]:
        """The events of a stream, whose step had this output if there was one."""
        words = stream.words
        changes: list[WordChange] = []
        pause: tuple[float, ...] = ()
        if output is not None:
            token, *probabilities = output
            stream.steps += 1
            changes, pause = words.push(int(token)), tuple(probabilities)
        if stream.flushed and stream.queued < self.frame_size:
            stream.ended = True
            changes += words.finish(stream.pushed / self.sampling_rate)
        heard = (stream.steps - _LAGS[self.alignment]) * self.frame_size - self._prefix
        time = min(max(0, heard), stream.pushed) / self.sampling_rate
        events = [
            StreamEvent(change.kind, slot, time, change.text, change.word, change.start, change.end)
            for change in changes
        ]
        if pause:
            events.append(StreamEvent("pause", slot, time, words.text, pause=pause))
        if stream.ended:
            events.append(StreamEvent("end", slot, time, words.text))
        return events

    def _due(self, stream: "_Stream") -> bool:
        return stream.queued >= self.frame_size or (stream.flushed and not stream.ended)

    def _stream(self, slot: int) -> "_Stream":
        if slot not in self._streams:
            known = isinstance(slot, int) and 0 <= slot < self._opened
            raise StreamingError(f"slot {slot}: it was closed" if known else f"slot {slot!r}: it was never opened")
        return self._streams[slot]

    def _decode(self, ids: list[int]) -> str:
        return self.processor.tokenizer.decode(ids, skip_special_tokens=True)


class _Stream:
    """What the host knows of a slot.

    Attributes:
        row: its row of the state on the device.
        words: those found so far.
        queued: samples that wait, with the silence around them.
        pushed: samples of the caller's so far.
        steps: of the model so far.
        flushed, ended: whether all samples are here, and whether all were heard.
    """

    def __init__(self, row: int, words: WordTracker, silence: int) -> None:
        self.row = row
        self.words = words
        self.queued = self.pushed = self.steps = 0
        self.flushed = self.ended = False
        self._pieces: deque[NDArray[np.float32]] = deque()
        self._last: NDArray[np.float32] | None = None
        self.append(np.zeros(silence, np.float32))

    def append(self, samples: NDArray[np.float32]) -> None:
        self._pieces.append(samples)
        self.queued += len(samples)

    def next_frame(self, size: int, delayed: bool) -> NDArray[np.float32]:
        """The frame to hear now. `delayed`: one is held back, and the first is heard twice."""
        frame = np.empty(size, np.float32)
        filled = 0
        while filled < size:
            piece = self._pieces.popleft()
            taken = min(len(piece), size - filled)
            frame[filled : filled + taken] = piece[:taken]
            filled += taken
            if taken < len(piece):
                self._pieces.appendleft(piece[taken:])
        self.queued -= size
        if not delayed:
            return frame
        last, self._last = self._last, frame
        return frame if last is None else last
