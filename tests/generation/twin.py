"""A small random transformers model, and the same model behind our step interface."""

from typing import Any

import torch
from transformers import GenerationConfig as TheirConfig
from transformers import MoonshineConfig, MoonshineForConditionalGeneration

from fastspeech.generation import GenerationConfig, GenerationMixin
from tests.generation.toy import PrefixCache

VOCABULARY = 24
START, EOS, PAD = 1, 2, 3


def their_model(seed: int = 0) -> MoonshineForConditionalGeneration:
    """A Moonshine whose next-token distributions are neither flat nor sure of themselves."""
    torch.manual_seed(seed)
    config = MoonshineConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=16,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
        bos_token_id=START,
        eos_token_id=EOS,
        pad_token_id=PAD,
        decoder_start_token_id=START,
    )
    model = MoonshineForConditionalGeneration(config).eval()
    model.generation_config = TheirConfig(
        bos_token_id=START, eos_token_id=EOS, pad_token_id=PAD, decoder_start_token_id=START
    )
    return model


class Twin(GenerationMixin):
    """Their model, decoded by our `generate`. `read` lists how many rows each step had."""

    main_input_name = "input_values"

    def __init__(self, theirs: MoonshineForConditionalGeneration) -> None:
        self.theirs = theirs
        self.generation_config = GenerationConfig.from_dict(theirs.generation_config.to_dict())
        self.read: list[int] = []

    def forward(self, input_values: Any) -> None:
        """Only its names count."""

    def start_decoding(self, model_inputs: dict[str, Any], rows_per_input: int, capacity: int) -> PrefixCache:
        encoder = self.theirs.model.encoder
        return PrefixCache(encoder(model_inputs["input_values"]).last_hidden_state, rows_per_input)

    def decode(self, input_ids: torch.Tensor, cache: PrefixCache, *_: Any) -> torch.Tensor:
        self.read.append(len(input_ids))
        encoded = cache.encoded.repeat_interleave(cache.rows_per_input, 0)
        ids = cache.read(input_ids)
        decoded = self.theirs.model.decoder(input_ids=ids, encoder_hidden_states=encoded, use_cache=False)
        return self.theirs.proj_out(decoded.last_hidden_state[:, -1])


def audio(batch: int, seed: int) -> torch.Tensor:
    """(batch, samples) of noise."""
    return torch.randn(batch, 2500, generator=torch.Generator().manual_seed(seed))
