"""A Moonshine checkpoint of a few thousand random weights, which never ends what it says."""

from pathlib import Path
from typing import Any

import tokenizers
import torch

from fastspeech import (
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    Tokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)
from fastspeech.generation import GenerationConfig

PIECES = ["<unk>", "<s>", "</s>", *(f"▁w{number}" for number in range(20))]


def processor() -> Wav2Vec2Processor:
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="<unk>")
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer = Tokenizer(backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>")
    return Wav2Vec2Processor(Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True), tokenizer)


def model(seed: int = 0, **options: Any) -> MoonshineForConditionalGeneration:
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "encoder_num_hidden_layers": 1,
        "decoder_num_hidden_layers": 2,
        "encoder_num_attention_heads": 2,
        "decoder_num_attention_heads": 2,
    }
    config = MoonshineConfig(
        vocab_size=len(PIECES),
        **sizes,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        decoder_start_token_id=1,
        initializer_range=0.4,
    )
    torch.manual_seed(seed)
    made = MoonshineForConditionalGeneration(config).eval()
    made.generation_config = GenerationConfig(
        decoder_start_token_id=1, eos_token_id=2, pad_token_id=2, max_length=194, suppress_tokens=[0, 1, 2], **options
    )
    return made


def save(folder: Path) -> Path:
    model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
