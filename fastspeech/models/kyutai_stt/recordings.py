"""What Kyutai STT tells of whole recordings: the tokens of each, how sure they are, and when its words were said."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastspeech.models.kyutai_stt.words import PIECES_FROM, offline_words
from fastspeech.transcripts import Word


@dataclass
class Written:
    """What was written of one recording.

    Attributes:
        tokens: of each step, the one that text begins with left out.
        cut: whether a limit of tokens ended it before its audio did.
        said: the tokens of the text alone.
        probabilities: of these, where asked for, by the scores that the parameters of generation make of the logits.
        words: where asked for.
    """

    tokens: list[int]
    cut: bool
    said: list[int]
    probabilities: list[float]
    words: list[Word]


def write_down(
    model: Any,
    processor: Any,
    clips: Sequence[Tensor],
    options: dict[str, Any],
    with_words: bool = False,
    with_probabilities: bool = False,
) -> list[Written]:
    """What is said in clips (n,) at the model's rate, heard together and each to its own end.

    Args:
        options: of `generate`.
        with_words: find the words, by `offline_words`, and with them the probabilities.
        with_probabilities: of tokens.
    """
    with_probabilities = with_probabilities or with_words
    extractor, size = processor.feature_extractor, model.config.frame_size
    inputs = processor(audio=list(clips), padding="longest").to(model.device)
    silence = inputs["input_values"].shape[2] - max(map(len, clips))
    own = [(len(clip) + silence) // size for clip in clips]
    given = options.get("max_new_tokens") or getattr(options.get("generation_config"), "max_new_tokens", None)
    most = max(own) if given is None else min(given, max(own))
    watching = _Probabilities()
    rules = [*(options.get("logits_processor") or ()), *([watching] if with_probabilities else ())]
    more = {"max_new_tokens": most, "logits_processor": rules or None, "stop_at_audio_end": True}
    output = model.generate(**inputs, **options | more)
    rows = output if isinstance(output, Tensor) else output.sequences
    probabilities = watching.until(rows) if with_probabilities else [[] for _ in clips]

    rate = model.config.codec_config.frame_rate
    late = lag(options.get("alignment", "hf"), _window(model, options)) / rate
    offset = extractor.audio_silence_prefix_seconds + extractor.audio_delay_seconds + late

    def decode(ids: list[int]) -> str:
        return processor.decode(ids, skip_special_tokens=True)

    written = []
    for row, frames, sure in zip(rows[:, 1:].tolist(), own, probabilities, strict=True):
        tokens = row[:frames]
        steps = [step for step, token in enumerate(tokens) if token >= PIECES_FROM]
        words = [
            Word(word.text, word.start, word.end, sum(sure[step] for step in word.steps) / len(word.steps))
            for word in (offline_words(tokens, decode, rate, offset) if with_words else ())
        ]
        said = [tokens[step] for step in steps]
        sure = [sure[step] for step in steps] if with_probabilities else []
        written.append(Written(tokens, len(tokens) < frames, said, sure, words))
    return written


def lag(alignment: str, window: int | None) -> int:
    """The frames by which text is later than under "moshi"."""
    return 0 if alignment == "moshi" else 1 + (window or 0)


def _window(model: Any, options: dict[str, Any]) -> int | None:
    sources = (
        options,
        vars(options.get("generation_config") or model.generation_config),
        vars(model.generation_config),
    )
    return next((source["audio_window_size"] for source in sources if "audio_window_size" in source), None)


class _Probabilities:
    """A rule that changes no score, and remembers the probability of each token."""

    def __init__(self) -> None:
        self._last: Tensor | None = None
        self._seen: list[Tensor] = []

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if self._last is not None:
            self._take(ids[:, -1])
        self._last = scores.softmax(-1)
        return scores

    def until(self, rows: Tensor) -> list[list[float]]:
        """Of all tokens of rows (rows, 1 + steps), which are those that were written."""
        if self._last is not None and len(self._seen) < rows.shape[1] - 1:
            self._take(rows[:, -1])
        return torch.stack(self._seen, 1).tolist()

    def _take(self, tokens: Tensor) -> None:
        if self._last is not None:
            self._seen.append(self._last.gather(1, tokens[:, None])[:, 0])
