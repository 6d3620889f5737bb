"""A decoder of one attention layer, with and without a cache of keys and values."""

from typing import Any

import torch
from torch import nn

from fastspeech.generation import DecoderCache, GenerationConfig, GenerationMixin
from fastspeech.outputs import BaseModelOutput

VOCABULARY, DIM = 30, 16
START, EOS, PAD = 2, 3, 1


class PrefixCache:
    """Keeps the tokens themselves, for a model that reads every sequence from its start at every step."""

    def __init__(self, encoded: torch.Tensor, rows_per_input: int) -> None:
        self.encoded = encoded
        self.rows_per_input = rows_per_input
        self.ids = torch.empty(len(encoded) * rows_per_input, 0, dtype=torch.int64)

    @property
    def length(self) -> int:
        return self.ids.shape[1]

    def read(self, input_ids: torch.Tensor) -> torch.Tensor:
        """All tokens so far, with the new ones."""
        self.ids = torch.cat((self.ids, input_ids), 1)
        return self.ids

    def reorder(self, rows: torch.Tensor) -> None:
        self.ids = self.ids[rows]

    def separate(self) -> None:
        """Every row has its tokens to itself already."""

    def keep(self, inputs: list[int]) -> None:
        self.encoded = self.encoded[inputs]
        self.ids = self.ids.unflatten(0, (-1, self.rows_per_input))[inputs].flatten(0, 1)


class Toy(GenerationMixin, nn.Module):
    """Attends to the tokens so far, then to the audio (B, T, DIM)."""

    main_input_name = "input_features"
    ignored_inputs = ("audio_chunk_index",)

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.key = nn.Embedding(VOCABULARY, DIM), nn.Linear(DIM, DIM)
        self.head = nn.Linear(DIM, VOCABULARY)
        self.to(dtype)
        self.generation_config = GenerationConfig(eos_token_id=EOS, pad_token_id=PAD, decoder_start_token_id=START)
        self.capacity = 0
        self.rows: list[int] = []

    def forward(self, input_features: Any, encoder_outputs: Any, decoder_attention_mask: Any, labels: Any) -> None:
        """Only its names count."""

    def encode(self, model_inputs: dict[str, Any], *_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=model_inputs["input_features"])

    def start_decoding(self, model_inputs: dict[str, Any], rows_per_input: int, capacity: int) -> DecoderCache:
        assert model_inputs.keys() <= {"input_features", "encoder_outputs"}
        self.capacity = capacity
        audio = model_inputs.get("input_features")
        encoded = (model_inputs["encoder_outputs"][0] if audio is None else audio)[None, :, None]
        return DecoderCache(encoded.clone(), encoded.clone(), capacity, rows_per_input=rows_per_input)

    def decode(self, input_ids: torch.Tensor, cache: DecoderCache, *_: Any) -> torch.Tensor:
        self.rows.append(len(input_ids))
        x = self.embed(input_ids)
        mask = cache.mask(input_ids.shape[1])
        new_keys, new_values = (new.view(cache.owners, 1, -1, DIM) for new in (self.key(x), x))
        keys, values = cache.append(0, new_keys, new_values)
        cache.advance(input_ids.shape[1])
        if mask is None:
            return self.after(x[:, -1], keys[:, 0], values[:, 0], cache.cross_keys[0][:, 0])
        assert input_ids.shape[1] == 1
        return self.after(x[:, -1], keys[:, 0], values[:, 0], cache.cross_keys[0][:, 0], mask[:, 0])

    def after(
        self,
        x: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        audio: torch.Tensor,
        mask: torch.Tensor | float = 0.0,
    ) -> torch.Tensor:
        """Logits (rows, VOCABULARY) after the last token x (rows, DIM). Beams of one input attend to it together, and
        to their tokens where they share them."""
        heard = attend(x.unflatten(0, (len(audio), -1)), audio, audio).flatten(0, 1)
        read = attend(x.unflatten(0, (len(keys), -1)), keys, values, mask).flatten(0, 1)
        return 3 * self.head(read + heard)


class UncachedToy(Toy):
    """The same without keys and values kept."""

    def start_decoding(self, model_inputs: dict[str, Any], rows_per_input: int, capacity: int) -> PrefixCache:  # type: ignore[override]
        return PrefixCache(model_inputs["input_features"], rows_per_input)

    def decode(self, input_ids: torch.Tensor, cache: PrefixCache, *_: Any) -> torch.Tensor:  # type: ignore[override]
        x = self.embed(cache.read(input_ids))
        return self.after(x[:, -1], self.key(x), x, cache.encoded)


def attend(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """(rows, n, DIM) queries of (rows, m, DIM) keys and values, the mask added to the scores."""
    return (queries @ keys.transpose(1, 2) + mask).softmax(-1) @ values
