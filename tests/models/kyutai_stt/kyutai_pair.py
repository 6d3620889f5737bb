"""The same random Kyutai STT in transformers and here, and things to give it."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from tiny_kyutai import CODEC, SIZES, stir

from fastspeech import KyutaiSpeechToTextConfig, KyutaiSpeechToTextForConditionalGeneration

FRAME = 64
TEXTS, CODES = SIZES["vocab_size"], SIZES["codebook_vocab_size"]
ODD: dict[str, dict[str, Any]] = {
    # a window of 6 tokens, and the codec's of 2 frames
    "small": {},
    # heads that share keys and are wider than hidden / heads, another base and another activation
    "grouped": {"num_key_value_heads": 2, "head_dim": 12, "rope_theta": 100.0, "hidden_act": "gelu"},
    # a window that no test fills
    "wide": {"sliding_window": 200},
}


def configs(name: str) -> tuple[transformers.KyutaiSpeechToTextConfig, KyutaiSpeechToTextConfig]:
    given = SIZES | ODD[name]
    theta = given.pop("rope_theta", 10000.0)
    theirs = transformers.KyutaiSpeechToTextConfig(
        **given,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        codec_config=transformers.MimiConfig(**CODEC),
    )
    return theirs, KyutaiSpeechToTextConfig(**given, rope_theta=theta, codec_config=CODEC)


@cache
def pair(
    name: str = "small",
) -> tuple[transformers.KyutaiSpeechToTextForConditionalGeneration, KyutaiSpeechToTextForConditionalGeneration]:
    """Both libraries' models with the same weights, in evaluation mode; not to be changed."""
    torch.manual_seed(0)
    theirs = stir(transformers.KyutaiSpeechToTextForConditionalGeneration(configs(name)[0]).eval())
    # What the conversion script writes. Without a cache transformers' codec forgets each window it has heard.
    theirs.generation_config.audio_window_size = 1
    theirs.generation_config._from_model_config = False  # else it is not read back
    theirs.codec_model.generation_config.use_cache = True
    with TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return theirs, KyutaiSpeechToTextForConditionalGeneration.from_pretrained(Path(folder))


def ids(rows: int, count: int, seed: int = 1) -> torch.Tensor:
    """(rows, count, 9) tokens of text and codes; some are the padding's, some of the text are read as codes."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, TEXTS + 40, (rows, count, 1), generator=generator)
    codes = torch.randint(0, CODES, (rows, count, 8), generator=generator)
    codes[torch.rand(codes.shape, generator=generator) < 0.05] = TEXTS + 8 * CODES
    return torch.cat((text, codes), 2)


def audio(rows: int, samples: int, seed: int = 2) -> torch.Tensor:
    return 0.3 * torch.randn(rows, 1, samples, generator=torch.Generator().manual_seed(seed))


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()
