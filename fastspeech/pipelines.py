"""From recordings to text in one call, with the signature of transformers' speech recognition pipeline."""

import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fastspeech.audio.recording import is_recording, recording_name
from fastspeech.auto import AutoModelForSpeechSeq2Seq, AutoProcessor, family_of_type
from fastspeech.checkpoints.config import parse_dtype
from fastspeech.checkpoints.loading import choose_device
from fastspeech.engine import Engine
from fastspeech.errors import AudioError
from fastspeech.recognition import PROMPT_OPTIONS, Chunk, Recogniser, Recording
from fastspeech.requests import Handle
from fastspeech.transcripts import Segment, Transcript, Word

DEMO = Path(__file__).parent / "assets"
"""The embedded checkpoint, which is used where no model is named."""

TASK = "automatic-speech-recognition"

_TOKENS_OF_LETTERS = 13.0
"""Tokens a second where most letters take more than one, as Moonshine's authors have it."""

_FAR_FROM_ASCII = frozenset({"ar", "ja", "ko", "uk", "vi", "zh"})

LISTENER = "kyutai_speech_to_text"
"""The type of model that has no encoder, and hears as it writes."""

_OF_ONE_CLIP = ("assistant_model", "streamer")
"""Arguments of `generate` that serve one clip at a time."""

_OF_GENERATE = (
    *_OF_ONE_CLIP,
    "custom_generate",
    "synced_gpus",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
)
"""Arguments that `generate` alone takes, or refuses."""

_AHEAD = 16
"""Batches of a list that are under way, or done before what comes before them."""

Progress = Callable[[float, float], None]


def pipeline(
    task: str | None = None,
    model: Any = None,
    *,
    processor: Any = None,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    device: int | str | torch.device | None = None,
    device_map: Any = None,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    model_kwargs: dict[str, Any] | None = None,
    **options: Any,
) -> "AutomaticSpeechRecognitionPipeline":
    """The pipeline of a model.

    Args:
        task: "automatic-speech-recognition", the only one there is.
        model: a folder, a hub id or a model with `generate`. None: the small embedded demo model, which knows twenty
            English words.
        processor: of the model; must be given with a model that is not named, unless both of the following are.
        tokenizer, feature_extractor: in place of the processor's.
        revision, token: of the hub.
        device, device_map: where the model is put; a number is that of a GPU, and a negative one is the CPU. By
            default a GPU where there is one; a model that is given stays where it is.
        dtype: of the model. By default the checkpoint's on a GPU, and float32 on the CPU. `torch_dtype` is its former
            name.
        model_kwargs: further arguments of the model's `from_pretrained`.
        options: `batch_size` and `max_tokens_per_second` of the pipeline, and `generate_kwargs` and
            `return_timestamps` for its calls.

    Raises:
        ValueError: another task, or a model without processor.
        CheckpointError: the checkpoint cannot be loaded.
    """
    if task not in (None, TASK):
        raise ValueError(f"there is no task {task!r}, only {TASK!r}")
    model = DEMO if model is None else model
    dtype = torch_dtype if dtype is None else dtype
    asked = device if device is not None else device_map
    if isinstance(model, str | os.PathLike):
        where: dict[str, Any] = {"revision": revision, "token": token}
        if processor is None:
            processor = AutoProcessor.from_pretrained(model, **where)
        place = _device("auto" if asked is None else asked)
        if dtype is None:
            dtype = "auto" if place.type == "cuda" else torch.float32
        if Path(model).name.rpartition("-")[2] in _FAR_FROM_ASCII:
            options.setdefault("max_tokens_per_second", _TOKENS_OF_LETTERS)
        model = AutoModelForSpeechSeq2Seq.from_pretrained(
            model, **where, dtype=dtype, device_map=place, **(model_kwargs or {})
        )
    else:
        kept = dtype is None or dtype == "auto"
        model = model.to(device=None if asked is None else _device(asked), dtype=None if kept else parse_dtype(dtype))
    if isinstance(processor, str | os.PathLike):
        processor = AutoProcessor.from_pretrained(processor, revision=revision, token=token)
    if tokenizer is not None or feature_extractor is not None:
        tokenizer = tokenizer if tokenizer is not None else getattr(processor, "tokenizer", None)
        if feature_extractor is None:
            feature_extractor = getattr(processor, "feature_extractor", None)
        family = family_of_type(model.config.model_type, type(model).__name__)
        processor = None
        if tokenizer is not None and feature_extractor is not None:
            processor = family.get(family.processor)(feature_extractor, tokenizer)
    if processor is None:
        raise ValueError("a model that is given needs processor=, or tokenizer= and feature_extractor=")
    return AutomaticSpeechRecognitionPipeline(model, processor, **options)


def _device(device: Any) -> torch.device:
    return torch.device("cpu") if isinstance(device, int) and device < 0 else choose_device(device)


class AutomaticSpeechRecognitionPipeline:
    """Transcribes recordings with a model and its processor.

    Args:
        model: with `generate`.
        processor: of the model.
        batch_size: chunks whose texts are written at once.
        generate_kwargs, return_timestamps, return_confidence: what calls take that do not say.
        max_tokens_per_second: most tokens of a chunk for each of its seconds, against models that say the same over and
            over; math.inf for no limit. By default what the model says: Moonshine 6.5, but `pipeline` takes 13 where
            the checkpoint's name ends in a language that needs more (ar, ja, ko, uk, vi, zh); others have no limit.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        batch_size: int = 8,
        generate_kwargs: dict[str, Any] | None = None,
        return_timestamps: bool | str = False,
        return_confidence: bool = False,
        max_tokens_per_second: float | None = None,
    ) -> None:
        self.recogniser = Recogniser(model.eval(), processor, max_tokens_per_second)
        self.model = self.recogniser.model
        self.processor = processor
        self.batch_size = batch_size
        self.generate_kwargs = generate_kwargs or {}
        self.return_timestamps = return_timestamps
        self.return_confidence = return_confidence
        self._former: dict[Any, Engine] = {}

    def __call__(
        self,
        inputs: Any,
        *,
        return_timestamps: bool | str | None = None,
        return_confidence: bool | None = None,
        batch_size: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **more_generate_kwargs: Any,
    ) -> Any:
        """What is said in one recording, or in many.

        Args:
            inputs: a recording, or a list or another iterable of them. A recording is what `load_audio` takes (a path,
                a URL, a file's bytes, a file), mono samples (n,) at the model's rate, or a dictionary of samples
                ("raw" or "array") and their "sampling_rate", to be resampled.
            return_timestamps: True for the chunks of a recording and their times, "word" for its words and theirs.
            return_confidence: whether the probabilities of tokens are given.
            batch_size: chunks whose texts are written at once.
            generate_kwargs: `language` (by default "en") and `punctuation`, where the model takes them, and the
                arguments of `generate`. Without any limit there, a chunk may have 500 new tokens. They may also be
                given directly. What `do_sample` draws follows from `torch.manual_seed`, whatever is decoded beside it.

        Returns:
            A dictionary for one recording; a list of them for a list, a lazy iterator for another iterable:
            "text", without surrounding spaces; "truncated": True where a limit of tokens cut it, so that words are
            missing; "chunks" where times are asked for, a list of {"text", "timestamp": (start, end) in seconds};
            "tokens" where confidence is, a list of {"text", "confidence": probability}, and then words have a
            "confidence" too, the mean of their tokens'.
            In a list, a recording that cannot be used gives {"error": why} in place of all that, and the others are
            transcribed.

        Raises:
            AudioError: the one recording cannot be used.
            TypeError: an input that is no recording.
            ValueError: a language or an argument that the model does not know.
        """
        timestamps = self.return_timestamps if return_timestamps is None else return_timestamps
        if timestamps not in (False, True, "word"):
            raise ValueError(
                f"return_timestamps={timestamps!r}: there are the times of chunks (True) and of words ('word')"
            )
        confidence = self.return_confidence if return_confidence is None else return_confidence
        options: dict[str, Any] = {"word_timestamps": timestamps == "word", "confidence": confidence}
        options = {**options, **self.generate_kwargs, **(generate_kwargs or {}), **more_generate_kwargs}
        if is_recording(inputs):
            (found,) = self.transcripts([inputs], batch_size=batch_size, strict=True, **options)
            return _result(found, timestamps, confidence)
        transcripts = self.transcripts(inputs, batch_size=batch_size, **options)
        results = (_result(transcript, timestamps, confidence) for transcript in transcripts)
        return list(results) if isinstance(inputs, list | tuple) else results

    def transcripts(
        self,
        inputs: Iterable[Any],
        *,
        batch_size: int | None = None,
        strict: bool = False,
        progress: Progress | None = None,
        word_timestamps: bool = False,
        confidence: bool = False,
        **generate_kwargs: Any,
    ) -> Iterator[Transcript]:
        """The transcript of each recording, in order, as soon as it and those before it are done.

        An `Engine`, which lives as long as the iterator, loads recordings and decodes them together, up to
        `batch_size` chunks at once; its memory, and on a GPU its recorded steps, are kept for the next. Of a list up to
        sixteen times as many recordings are under way; of another iterable, which may come from a microphone, no more
        than `batch_size` are taken before their results are. Rules and criteria that are given hear of the chunks one
        by one, in turns.

        A model that hears as it writes (Kyutai STT), one that has no more than `generate`, and the arguments
        `assistant_model`, `streamer` and `custom_generate` go through `generate`, in batches of chunks of about the
        same length; with the first two of these arguments chunk by chunk.

        Args:
            inputs: recordings, as `__call__` takes them.
            strict: raise the first AudioError, rather than put it into a transcript.
            word_timestamps: find out when each word was said, by what the decoder attended to. This and `confidence`
                cost one further pass of the decoder for each chunk.
            confidence: give the probability of each token.
            progress: called with (seconds transcribed, seconds loaded so far) after each chunk or batch, by a thread
                of the engine.
            generate_kwargs: as `__call__` takes them.

        Raises:
            ValueError: at once, for a language or an argument of the pipeline that is not known.
            TypeError: at once, where there is nothing to iterate over.
        """
        size = self.batch_size if batch_size is None else batch_size
        if size < 1:
            raise ValueError(f"batch_size must be positive, not {size}")
        if generate_kwargs.get("num_return_sequences", 1) != 1:
            raise ValueError("num_return_sequences: a pipeline gives one text for a recording")
        prompt = self.recogniser.prompt(generate_kwargs)
        details = word_timestamps, confidence
        many = size * (_AHEAD if isinstance(inputs, list | tuple) else 1)
        set_ones = {name for name, value in generate_kwargs.items() if value is not None and value is not False}
        if not Engine.serves(self.model) or not set_ones.isdisjoint(_OF_GENERATE):
            options = {name: value for name, value in generate_kwargs.items() if name not in PROMPT_OPTIONS}
            windows = self._windows(iter(inputs), many, strict)
            size = size if set_ones.isdisjoint(_OF_ONE_CLIP) else 1
            return self._in_batches(windows, size, progress, prompt, options, details)
        without = {*_OF_GENERATE, "num_return_sequences", "return_dict_in_generate"}
        options = {name: value for name, value in generate_kwargs.items() if name not in without}
        return self._by_engine(iter(inputs), many, size, strict, progress, options, details)

    def _by_engine(
        self,
        inputs: Iterator[Any],
        many: int,
        size: int,
        strict: bool,
        progress: Progress | None,
        options: dict[str, Any],
        details: tuple[bool, bool],
    ) -> Iterator[Transcript]:
        recogniser = self.recogniser
        under_way: deque[tuple[str, Handle]] = deque()

        def first() -> Transcript:
            name, handle = under_way.popleft()
            try:
                return handle.result().transcript
            except AudioError as error:
                if strict:
                    raise
                return Transcript(name, error=str(error))

        rows = size * (recogniser.setting("num_beams", options) or 1)
        weight = next(self.model.parameters())
        kind = rows, weight.device, weight.dtype, self.model.model.decoder.in_int8
        engine = Engine(
            self.model,
            self.processor,
            memory=math.inf,
            max_rows=rows,
            max_tokens_per_second=recogniser.max_tokens_per_second,
            former=self._former.pop(kind, None),  # taken out: calls may overlap
        )
        with engine:
            for number, item in enumerate(inputs):
                name = recording_name(item, number)
                handle = engine.submit(
                    item,
                    word_timestamps=details[0],
                    confidence=details[1],
                    seed=_seed() if recogniser.setting("do_sample", options) else None,
                    progress=None if progress is None else partial(_tell, progress, engine),
                    **options,
                )
                under_way.append((name, handle))
                while under_way and (len(under_way) >= many or under_way[0][1].done()):
                    yield first()
            while under_way:
                yield first()
        # Of calls that were broken off something may be left in it.
        self._former = {kind: engine}

    def _in_batches(
        self,
        windows: Iterator[list[Recording]],
        size: int,
        progress: Progress | None,
        prompt: dict[str, Any],
        options: dict[str, Any],
        details: tuple[bool, bool],
    ) -> Iterator[Transcript]:
        done = loaded = 0.0
        for recordings in windows:
            chunks = [chunk for recording in recordings for chunk in recording.chunks]
            chunks.sort(key=lambda chunk: len(chunk.samples), reverse=True)
            loaded += sum(len(chunk.samples) for chunk in chunks) / self.recogniser.rate
            for first in range(0, len(chunks), size):
                batch = chunks[first : first + size]
                self._decode(batch, prompt, options, details)
                done += sum(len(chunk.samples) for chunk in batch) / self.recogniser.rate
                if progress is not None:
                    progress(done, loaded)
            for recording in recordings:
                yield self.recogniser.transcript(recording, prompt.get("language"), details)

    def _windows(self, inputs: Iterator[Any], size: int, strict: bool) -> Iterator[list[Recording]]:
        """Recordings in groups of at least `size` chunks, the last one excepted."""
        window: list[Recording] = []
        pending = 0
        for number, item in enumerate(inputs):
            recording = self.recogniser.load(item, number)
            if strict and recording.error is not None:
                raise recording.error
            window.append(recording)
            pending += len(recording.chunks)
            if pending >= size:
                yield window
                window, pending = [], 0
        if window:
            yield window

    def _decode(
        self, chunks: list[Chunk], prompt: dict[str, Any], options: dict[str, Any], details: tuple[bool, bool]
    ) -> None:
        """Fills in the tokens of one batch, and what is asked for of words (details[0]) and confidence (details[1])."""
        if getattr(getattr(self.model, "config", None), "model_type", None) == LISTENER:
            self._listen(chunks, options, details)
            return
        recogniser = self.recogniser
        inputs = recogniser.inputs(chunks, prompt)
        ids = inputs.get("decoder_input_ids")
        prompt_length = 1 if ids is None else ids.shape[1]
        limits = recogniser.limits(chunks, options, prompt_length)
        if any(details):
            with torch.no_grad():
                inputs["encoder_outputs"] = self.model.encode(inputs)
            del inputs[self.model.main_input_name]
        output = self.model.generate(**inputs, **{**options, "max_new_tokens": limits})
        rows = output if isinstance(output, torch.Tensor) else output.sequences
        for number, (chunk, row) in enumerate(zip(chunks, rows.tolist(), strict=True)):
            limit = limits[number] if isinstance(limits, list) else limits
            recogniser.take(chunk, row, limit, options, prompt_length)
        if any(details):
            first = recogniser.first(options, prompt_length)
            recogniser.read_again(chunks, inputs, rows, first, with_words=details[0])

    def _listen(self, chunks: list[Chunk], options: dict[str, Any], details: tuple[bool, bool]) -> None:
        """As `_decode`, with a model that writes a token for each frame of audio it hears."""
        from fastspeech.models.kyutai_stt.recordings import write_down

        if self.recogniser.max_tokens_per_second < math.inf:
            raise ValueError("max_tokens_per_second: this model writes a token for each frame of audio, and no more")
        clips = [chunk.samples for chunk in chunks]
        for chunk, found in zip(chunks, write_down(self.model, self.processor, clips, options, *details), strict=True):
            chunk.ids, chunk.cut, chunk.words = found.tokens, found.cut, found.words
            chunk.said, chunk.probabilities = found.said, found.probabilities


def _seed() -> int:
    """Drawn by PyTorch's generator."""
    return int(torch.randint(1 << 62, (), device="cpu"))


def _tell(progress: Progress, engine: Engine, *of_one_recording: float) -> None:
    so_far = engine.summary()
    progress(so_far.audio, so_far.loaded)


def _result(transcript: Transcript, timestamps: bool | str, confidence: bool) -> dict[str, Any]:
    if transcript.error is not None:
        return {"error": transcript.error}
    result: dict[str, Any] = {"text": transcript.text}
    if transcript.truncated:
        result["truncated"] = True
    segments = transcript.segments
    words = [word for segment in segments for word in segment.words]
    if timestamps:
        spans: Sequence[Segment | Word] = words if timestamps == "word" else segments
        result["chunks"] = [{"text": span.text, "timestamp": (span.start, span.end)} for span in spans]
    if confidence:
        result["tokens"] = [asdict(token) for segment in segments for token in segment.tokens]
        if timestamps == "word":
            for chunk, word in zip(result["chunks"], words, strict=True):
                chunk["confidence"] = word.confidence
    return result
