"""What lies between recordings and a model: chunks, the model's inputs, limits of tokens, and transcripts."""

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
import torch

from fastspeech.audio.check import check_samples
from fastspeech.audio.recording import recording_name, recording_samples
from fastspeech.errors import AudioError
from fastspeech.transcripts import Segment, Token, Transcript, Word
from fastspeech.words import alignment_costs, words_of

DEFAULT_LANGUAGE = "en"

_NEW_TOKENS = 500
"""Most tokens of a chunk of 35 s where no limit is set anywhere: fast Arabic takes about 240."""

PROMPT_OPTIONS = ("language", "punctuation")


@dataclass
class Chunk:
    """A piece of a recording that the model hears at once; `index` is None where it is all of it.

    `said`: the tokens of the text alone, their `probabilities`, and their `costs` of alignment or, where the model
    tells when it wrote them, the `words`, where asked for.
    """

    index: int | None
    start: int
    samples: torch.Tensor
    ids: list[int]
    cut: bool = False
    said: list[int] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    costs: np.ndarray | None = None
    words: list[Word] = field(default_factory=list)


@dataclass
class Recording:
    name: str
    chunks: list[Chunk]
    samples: int = 0
    error: AudioError | None = None


class Recogniser:
    """A model and its processor, as those see them who transcribe recordings with it.

    Args:
        model: with `generate`.
        processor: of the model.
        max_tokens_per_second: most tokens of a chunk for each of its seconds; None for what the model says, math.inf
            for no limit.
    """

    def __init__(self, model: Any, processor: Any, max_tokens_per_second: float | None = None) -> None:
        # eval() drops what was derived of the weights, which would have to be made again.
        self.model = model.eval() if getattr(model, "training", True) else model
        self.processor = processor
        if max_tokens_per_second is None:
            max_tokens_per_second = getattr(model, "max_tokens_per_second", None) or math.inf
        if not max_tokens_per_second > 0:
            raise ValueError(f"max_tokens_per_second must be positive, not {max_tokens_per_second}")
        self.max_tokens_per_second = max_tokens_per_second

    @property
    def rate(self) -> int:
        """The model's sampling rate, in Hz."""
        return self.processor.feature_extractor.sampling_rate

    def setting(self, name: str, options: dict[str, Any]) -> Any:
        """A parameter of `generate` where it was given these: theirs, else the model's own, else None."""
        given = options.get(name)
        for config in (options.get("generation_config"), self.model.generation_config):
            given = getattr(config, name, None) if given is None else given
        return given

    def prompt(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the processor that say what to write; refused before anything is loaded."""
        taken = inspect.signature(self.processor.__call__).parameters
        prompt = {name: given[name] for name in PROMPT_OPTIONS if given.get(name) is not None}
        foreign = [name for name in prompt if name not in taken]
        if foreign:
            raise ValueError(f"{type(self.model).__name__} has no choice of {' and '.join(foreign)}")
        if "language" in taken:
            prompt.setdefault("language", DEFAULT_LANGUAGE)
            self.processor.get_decoder_prompt_ids(**prompt)
        return prompt

    def load(self, item: Any, number: int) -> Recording:
        """A recording in chunks, or with the error that keeps it from being used. `number` names one without a name."""
        name = recording_name(item, number)
        extractor = self.processor.feature_extractor
        try:
            samples = check_samples(recording_samples(item, name, self.rate), name, extractor.minimum_samples)
        except AudioError as error:
            return Recording(name, [], error=error)
        chunks = [Chunk(index, start, samples[start:end], []) for index, start, end in extractor.split(samples)]
        return Recording(name, chunks, len(samples))

    def inputs(self, chunks: Sequence[Chunk], prompt: dict[str, Any]) -> dict[str, Any]:
        """The model's inputs for chunks that it hears at once."""
        if "device" in inspect.signature(self.processor.feature_extractor.__call__).parameters:
            prompt = {"device": self.model.device, **prompt}
        return self.processor(
            [chunk.samples for chunk in chunks],
            sampling_rate=self.rate,
            padding="longest",
            return_attention_mask=True,
            return_tensors="pt",
            **prompt,
        ).to(self.model.device, dtype=self.model.dtype)

    def take(self, chunk: Chunk, row: list[int], limit: int, options: dict[str, Any], prompt_length: int) -> None:
        """Put down what was written for a chunk: its tokens, prompt included, of which at most `limit` are new."""
        chunk.ids = row
        ends = self.ends(options)
        # Behind its own limit a row is padded, for some models with the token that ends a text.
        new = row[self.first(options, prompt_length) : prompt_length + limit]
        chunk.cut = ends.isdisjoint(new)
        chunk.said = list(takewhile(lambda token: token not in ends, new))

    def first(self, options: dict[str, Any], prompt_length: int) -> int:
        """The place of the first token that is said."""
        return prompt_length + self._forced(options, prompt_length)

    @torch.no_grad()
    def read_again(
        self, chunks: list[Chunk], inputs: dict[str, Any], rows: torch.Tensor, first: int, with_words: bool
    ) -> None:
        """Fills in what one pass over the tokens (B, length) of a batch tells about those that were said, which begin
        at `first`."""
        encoded = inputs["encoder_outputs"]
        output = self.model(
            encoder_outputs=encoded,
            attention_mask=inputs.get("attention_mask"),
            decoder_input_ids=rows[:, :-1],
            use_cache=False,
            output_attentions=with_words,
            return_dict=True,
        )
        mask = encoded.attention_mask
        frames = [encoded.last_hidden_state.shape[1]] * len(chunks) if mask is None else mask.sum(-1).tolist()
        for row, chunk in enumerate(chunks):
            count = len(chunk.said)
            scores = output.logits[row, first - 1 : first - 1 + count].float().softmax(-1)
            tokens = rows[row, first : first + count, None]
            chunk.probabilities = scores.gather(1, tokens).squeeze(1).tolist()
            if with_words:
                # The token that ends the text takes the silence behind it.
                heard = slice(first - 1, first - 1 + count + (not chunk.cut))
                chunk.costs = alignment_costs(output.cross_attentions, row, heard, frames[row])

    def limits(self, chunks: list[Chunk], options: dict[str, Any], prompt_length: int) -> int | list[int]:
        """The most new tokens: of each chunk where its length counts, else of all.

        The caller's limit holds in any case. The checkpoint's holds where the length of a chunk sets none.
        """
        by_length = self.max_tokens_per_second < math.inf
        sources = [options, vars(options["generation_config"]) if options.get("generation_config") else {}]
        if not by_length:
            sources.append(vars(self.model.generation_config))
        positions = getattr(self.model, "decoder_positions", None)
        most = _NEW_TOKENS if positions is None else min(_NEW_TOKENS, positions - prompt_length)
        lengths = [(source.get("max_new_tokens"), source.get("max_length")) for source in sources]
        for new, whole in lengths:
            if new is not None or whole is not None:
                most = new if new is not None else whole - prompt_length
                break
        if not by_length:
            return most
        seconds = [len(chunk.samples) / self.rate for chunk in chunks]
        return [min(most, math.ceil(self.max_tokens_per_second * length)) for length in seconds]

    def _forced(self, options: dict[str, Any], prompt_length: int) -> bool:
        """Whether the first new token is forced, such as a language: it is then no part of what is said."""
        configs = (options.get("generation_config"), self.model.generation_config)
        forced = [getattr(config, "forced_bos_token_id", None) for config in configs]
        if "forced_bos_token_id" in options:
            forced = [options["forced_bos_token_id"]]
        return prompt_length == 1 and any(token is not None for token in forced)

    def ends(self, options: dict[str, Any]) -> set[int]:
        """The tokens that end a text; one without any of them was cut."""
        config = options.get("generation_config") or self.model.generation_config
        ends = options.get("eos_token_id", config.eos_token_id)
        if ends is None:
            ends = self.model.generation_config.eos_token_id
        return {ends} if isinstance(ends, int) else set(ends or ())

    def transcript(self, recording: Recording, language: str | None, details: tuple[bool, bool]) -> Transcript:
        if recording.error is not None:
            return Transcript(recording.name, error=str(recording.error))
        rows = [chunk.ids for chunk in recording.chunks]
        texts = self.processor.decode(rows, skip_special_tokens=True)
        text = texts[0]
        if "audio_chunk_index" not in inspect.signature(self.processor.decode).parameters:
            text = " ".join(piece for piece in (piece.strip() for piece in texts) if piece)
        elif recording.chunks[0].index is not None:
            index = [(0, chunk.index) for chunk in recording.chunks]
            (text,) = self.processor.decode(rows, skip_special_tokens=True, audio_chunk_index=index, language=language)
        segments = tuple(
            Segment(
                chunk.start / self.rate,
                (chunk.start + len(chunk.samples)) / self.rate,
                piece.strip(),
                chunk.cut,
                self._words(chunk),
                self._tokens(chunk) if details[1] else (),
            )
            for chunk, piece in zip(recording.chunks, texts, strict=True)
        )
        return Transcript(recording.name, text.strip(), recording.samples / self.rate, language, segments)

    def _words(self, chunk: Chunk) -> tuple[Word, ...]:
        if chunk.costs is None:
            return tuple(chunk.words)
        start, seconds = chunk.start / self.rate, len(chunk.samples) / self.rate

        def decode(ids: list[int]) -> str:
            return self.processor.decode(ids, skip_special_tokens=True)

        return words_of(chunk.said, chunk.probabilities, chunk.costs, decode, start, seconds)

    def _tokens(self, chunk: Chunk) -> tuple[Token, ...]:
        pieces = self.processor.tokenizer.convert_ids_to_tokens(chunk.said)
        return tuple(Token(piece, value) for piece, value in zip(pieces, chunk.probabilities, strict=True))
