"""The same random Kyutai STT in transformers and here, and things to give it."""

from functools import cache
from typing import Any

import torch
import transformers
from tiny_kyutai import CODEC, spread

from fastspeech.models.kyutai_stt import KyutaiSpeechToTextConfig, KyutaiSpeechToTextForConditionalGeneration

SIZES: dict[str, dict[str, Any]] = {
    # a window of 6 tokens, and the codec's of 2 frames
    "small": {},
    # grouped heads wider than hidden / heads, another base; no window wraps in the tests
    "grouped": {"num_key_value_heads": 2, "head_dim": 12, "rope_theta": 100000.0, "sliding_window": 64},
}


def settings(name: str) -> dict[str, Any]:
    """Keyword arguments of either library's configuration, `rope_theta` apart."""
    return {
        "codebook_vocab_size": 17,
        "vocab_size": 41,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 44,
        "sliding_window": 6,
        "num_codebooks": 8,
        "audio_bos_token_id": 16,
        "audio_pad_token_id": 41 + 8 * 17,
        # as in the released models, where 48000 is no text and read as a code
        "bos_token_id": 41 + 5 * 17 + 3,
    } | SIZES[name]


def configs(name: str) -> tuple[transformers.KyutaiSpeechToTextConfig, KyutaiSpeechToTextConfig]:
    given = settings(name)
    theta = given.pop("rope_theta", 10000.0)
    rotary = {"rope_type": "default", "rope_theta": theta}
    theirs = transformers.KyutaiSpeechToTextConfig(
        **given, rope_parameters=rotary, codec_config=transformers.MimiConfig(**CODEC)
    )
    return theirs, KyutaiSpeechToTextConfig(**given, rope_theta=theta, codec_config=CODEC)


def hf_model(name: str, seed: int = 0) -> transformers.KyutaiSpeechToTextForConditionalGeneration:
    """transformers' model, with weights that make each token depend on what is heard and has been written."""
    torch.manual_seed(seed)
    model = transformers.KyutaiSpeechToTextForConditionalGeneration(configs(name)[0]).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.startswith("codec_model."):
                continue
            if "norm" in key:
                parameter.normal_(1.0, 0.3)
            else:
                parameter.normal_(0.0, 0.5 if "embed" in key else 1.3 * parameter[0].numel() ** -0.5)
        model.model.embed_tokens.embed_tokens.weight[-1] = 0
    spread(model.codec_model)
    # What the conversion script writes. Without its cache, transformers' codec forgets each window it has heard.
    model.generation_config.audio_window_size = 1
    model.codec_model.generation_config.use_cache = True
    return model


@cache
def pair(
    name: str = "small",
) -> tuple[transformers.KyutaiSpeechToTextForConditionalGeneration, KyutaiSpeechToTextForConditionalGeneration]:
    """Both libraries' models with the same weights, in evaluation mode; not to be changed."""
    import tempfile

    theirs = hf_model(name)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = KyutaiSpeechToTextForConditionalGeneration.from_pretrained(folder)
    return theirs, ours


def ids(rows: int, count: int, seed: int = 1) -> torch.Tensor:
    """(rows, count, 9) tokens of text and codes; some are the padding's."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, 41, (rows, count, 1), generator=generator)
    codes = torch.randint(0, 17, (rows, count, 8), generator=generator)
    codes[torch.rand(codes.shape, generator=generator) < 0.05] = 41 + 8 * 17
    return torch.cat((text, codes), 2)


def audio(rows: int, samples: int, seed: int = 2) -> torch.Tensor:
    return 0.3 * torch.randn(rows, 1, samples, generator=torch.Generator().manual_seed(seed))


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()
