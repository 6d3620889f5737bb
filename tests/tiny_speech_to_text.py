"""A Speech2Text checkpoint of a few thousand random weights, which never ends what it says."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from s2t_text import save_vocabulary

from fastspeech import (
    Speech2TextConfig,
    Speech2TextFeatureExtractor,
    Speech2TextForConditionalGeneration,
    Speech2TextProcessor,
    Speech2TextTokenizer,
)
from fastspeech.generation import GenerationConfig


def processor(**options: Any) -> Speech2TextProcessor:
    with TemporaryDirectory() as folder:
        tokenizer = Speech2TextTokenizer(**save_vocabulary(Path(folder)), **options)
    return Speech2TextProcessor(Speech2TextFeatureExtractor(), tokenizer)


def model(seed: int = 0, **options: Any) -> Speech2TextForConditionalGeneration:
    """Weights are larger than a fresh model's, so that what is written depends on what is heard."""
    config = Speech2TextConfig(
        vocab_size=110,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        conv_channels=16,
        max_source_positions=100,
        max_target_positions=60,
    )
    torch.manual_seed(seed)
    made = Speech2TextForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "norm" not in name:
                parameter.normal_(0.0, 0.2 if parameter.dim() == 1 else 0.5)
    settings: dict[str, Any] = {
        "max_length": 30,
        "num_beams": 5,
        "early_stopping": True,
        "suppress_tokens": [*range(4)],
    }
    special = {"decoder_start_token_id": 2, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    made.generation_config = GenerationConfig(**special | settings | options)
    return made


def save(folder: Path, **options: Any) -> Path:
    model().save_pretrained(folder)
    processor(**options).save_pretrained(folder)
    return folder
