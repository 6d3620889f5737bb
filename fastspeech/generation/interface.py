"""What decoding asks of a model, and what a caller may hand to it."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from .cache import DecoderCache

LogitsRule = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Called with the tokens so far (rows, length) int64 and the scores of the next one (rows, vocabulary) float32: logits
in greedy search and sampling, log-probabilities in beam search. Returns the scores to go on with, and may overwrite
those given."""

StoppingCriterion = Callable[[torch.Tensor, tuple[torch.Tensor, ...] | None], torch.Tensor | bool]
"""Called with the tokens so far (rows, length) int64 and, where they are recorded, the scores of every step so far.
Returns which rows end here, (rows,) bool, or one bool for all."""


class StepModel(Protocol):
    """A model that decodes token by token."""

    def start_decoding(self, model_inputs: dict[str, Any], rows_per_input: int, capacity: int) -> DecoderCache:
        """Listen to the audio once and return an empty cache for decoding what was said.

        Args:
            model_inputs: the model's inputs by the names of its `forward`, without the decoder's prompt. Where
                `encoder_outputs` is there, the encoder does not run.
            rows_per_input: hypotheses of each utterance, which share its cross-attention keys and values.
            capacity: the tokens that will be read at most.
        """
        ...

    def decode(self, input_ids: torch.Tensor, cache: DecoderCache) -> torch.Tensor:
        """Read n further tokens of every row and advance the cache.

        Args:
            input_ids: (rows, n) int64; row = input * rows_per_input + hypothesis.

        Returns:
            (rows, vocabulary) logits after the last of them, in the model's dtype. They hold until the next call, and
            the caller may overwrite them.
        """
        ...


class Streamer(Protocol):
    """Receives tokens as they are decoded."""

    def put(self, value: torch.Tensor) -> None:
        """Take the prompt (rows, length), then every step's tokens (rows,), int64 on the CPU."""
        ...

    def end(self) -> None:
        """Know that no more come."""
        ...
