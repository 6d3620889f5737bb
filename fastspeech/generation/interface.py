"""What decoding asks of a model, and what a caller may hand to it."""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch

from fastspeech.outputs import BaseModelOutput

from .cache import DecoderCache

LogitsRule = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Called with the tokens so far (rows, length) int64 and the scores of the next one (rows, vocabulary) float32: logits
in greedy search and sampling, log-probabilities in beam search. Returns the scores to go on with, and may overwrite
those given."""

StoppingCriterion = Callable[[torch.Tensor, tuple[torch.Tensor, ...] | None], torch.Tensor | bool]
"""Called with the tokens so far (rows, length) int64 and, where they are recorded, the scores of every step so far.
Returns which rows end here, (rows,) bool, or one bool for all."""


@dataclass
class Record:
    """What a pass through the decoder leaves behind for those who ask for it.

    hidden_states: one (B, n, hidden) for the input and one a layer, the last of them normalised; attentions: one
    (B, heads, n, tokens) a layer; cross_attentions: one (B, heads, n, frames) a layer.
    """

    with_states: bool = False
    with_weights: bool = False
    hidden_states: list[torch.Tensor] = field(default_factory=list)
    attentions: list[torch.Tensor] = field(default_factory=list)
    cross_attentions: list[torch.Tensor] = field(default_factory=list)


class Ask(NamedTuple):
    """What a search asks to be read: input_ids (rows, n) int64, further tokens of every row of its cache. What is to be
    recorded of it goes to `record`."""

    input_ids: torch.Tensor
    record: Record | None


Search = Generator[Ask | torch.Tensor, Any, Any]
"""A search for what was said: it yields what it asks to be read, is sent the logits (rows, vocabulary) after the last
token of that, which it may overwrite, and returns what it found. In between it yields tensors whose numbers it is to
know, and is sent these as `tolist` gives them: who runs several searches reads them from the device at once."""


class StepModel(Protocol):
    """A model that decodes token by token."""

    def encode(
        self, model_inputs: dict[str, Any], with_states: bool = False, with_weights: bool = False
    ) -> BaseModelOutput:
        """Listen to the audio: what the encoder returns, with its hidden states and attention weights if asked for."""
        ...

    def start_decoding(self, model_inputs: dict[str, Any], rows_per_input: int, capacity: int) -> DecoderCache:
        """Listen to the audio once and return an empty cache for decoding what was said.

        Args:
            model_inputs: the model's inputs by the names of its `forward`, without the decoder's prompt. Where
                `encoder_outputs` is there, the encoder does not run.
            rows_per_input: hypotheses of each utterance, which share its cross-attention keys and values.
            capacity: the tokens that will be read at most.
        """
        ...

    def decode(
        self, input_ids: torch.Tensor, cache: DecoderCache, record: Record | None = None, every: bool = False
    ) -> torch.Tensor:
        """Read n further tokens of every row and advance the cache.

        Args:
            input_ids: (rows, n) int64; row = input * rows_per_input + hypothesis.
            record: takes what is asked of it.
            every: return the logits after each of the tokens.

        Returns:
            (rows, vocabulary) logits after the last of them, or (rows, n, vocabulary), in the model's dtype. They hold
            until the next call, and the caller may overwrite them.
        """
        ...


def run(search: Search, model: StepModel, cache: DecoderCache) -> Any:
    """What a search finds, with a model and a cache of its own."""
    try:
        asked = next(search)
        while True:
            if isinstance(asked, Ask):
                asked = search.send(model.decode(asked.input_ids, cache, asked.record))
            else:
                asked = search.send(asked.tolist())
    except StopIteration as end:
        return end.value


class Streamer(Protocol):
    """Receives tokens as they are decoded."""

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt (rows, length), then every step's tokens (rows,), int64 on the CPU."""
        ...

    def end(self) -> None:
        """Know that no more come."""
        ...
