"""What decoding asks of a model."""

from typing import Any, Protocol

import torch

from .cache import DecoderCache


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
            (rows, vocabulary) logits after the last of them, in the model's dtype; the caller may overwrite them.
        """
        ...
