"""A Kyutai model with frames of the released models' length and little else, whose every token depends on all that its
stream heard, and sounds in which there is something to hear."""

from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from numpy.typing import NDArray
from tiny_kyutai import CODEC, spread

from fastspeech import (
    KyutaiSpeechToTextConfig,
    KyutaiSpeechToTextFeatureExtractor,
    KyutaiSpeechToTextForConditionalGeneration,
    KyutaiSpeechToTextProcessor,
    KyutaiSpeechToTextTokenizer,
)
from fastspeech.models.kyutai_stt.model import KyutaiState

FRAME, RATE = 1920, 24000
DELAY, PREFIX = 0.5, 0.1
PIECES = ["<unk>", "<s>", "</s>", "<pad>", *(f"{space}{a}{b}" for space in ("▁", "") for a in "bdfgk" for b in "aeiou")]
SIZES: dict[str, Any] = {
    "vocab_size": len(PIECES) + 1,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "ffn_dim": 64,
    "sliding_window": 16,
    "num_codebooks": 4,
    "codebook_vocab_size": 17,
    "audio_bos_token_id": 16,
    "audio_pad_token_id": len(PIECES) + 1 + 4 * 17,
    "bos_token_id": len(PIECES) + 30,
}
NARROW = CODEC | {
    "num_filters": 2,
    "upsampling_ratios": [8, 6, 5, 4],
    "num_quantizers": 4,
    "num_hidden_layers": 1,
    "sliding_window": 12,
}


def model(seed: int = 0, **options: Any) -> KyutaiSpeechToTextForConditionalGeneration:
    torch.manual_seed(seed)
    config = KyutaiSpeechToTextConfig(**(SIZES | {"codec_config": NARROW, "extra_heads_num_heads": 2} | options))
    return lively(KyutaiSpeechToTextForConditionalGeneration(config).eval())


def hf_model(seed: int = 0) -> transformers.KyutaiSpeechToTextForConditionalGeneration:
    torch.manual_seed(seed)
    config = transformers.KyutaiSpeechToTextConfig(**SIZES, codec_config=NARROW)
    made = transformers.KyutaiSpeechToTextForConditionalGeneration(config).eval()
    made.generation_config.audio_window_size = 1
    return lively(made)


@torch.no_grad()
def lively(made: Any) -> Any:
    """Weights so wide that what was heard shows in what is said."""
    spread(made.codec_model)
    for name, weight in made.codec_model.named_parameters():
        if name.endswith("conv.bias"):
            weight.zero_()
        elif ".conv." in name:
            weight.mul_(1.7)
    for name, weight in made.model.named_parameters():
        if name.endswith("embed_tokens.weight"):
            weight.normal_()[-1] = 0
        elif weight.dim() == 2:
            weight.mul_(2)
    head = made.lm_head.weight
    head.normal_()
    head.div_(head.norm(dim=1, keepdim=True))
    head[[0, 3]] *= 1.5  # marks and padding are common
    head[-1] = 0
    return made


def processor() -> KyutaiSpeechToTextProcessor:
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="<unk>")
    )
    backend.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(" ", 1, 0)]
    )
    extractor = KyutaiSpeechToTextFeatureExtractor(audio_delay_seconds=DELAY, audio_silence_prefix_seconds=PREFIX)
    return KyutaiSpeechToTextProcessor(extractor, KyutaiSpeechToTextTokenizer(backend, unk_token="<unk>"))


def save(folder: Path) -> Path:
    model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def hf_extractor() -> transformers.KyutaiSpeechToTextFeatureExtractor:
    return transformers.KyutaiSpeechToTextFeatureExtractor(
        audio_delay_seconds=DELAY, audio_silence_prefix_seconds=PREFIX
    )


def sound(samples: int, seed: int = 0) -> NDArray[np.float32]:
    """Noise whose level and mean change every 20 ms."""
    random = np.random.default_rng(seed)
    count = samples // 480 + 1
    noise = random.standard_normal((count, 480)) * np.exp(random.standard_normal((count, 1)))
    return (noise + 2 * random.standard_normal((count, 1))).reshape(-1)[:samples].astype(np.float32)


def poison(state: KyutaiState, row: int) -> None:
    """NaN wherever a slot keeps a number, and a place in its stream that it never had."""
    pages = [tensor for pair in (*state.decoder.pages, *state.codec.pages) for tensor in pair]
    for tensor in (state.codec.pasts, *pages):
        tensor[row] = torch.nan
    for positions in (state.decoder.positions, state.codec.positions):
        positions[row] = 1_000_003
