"""A CohereAsr checkpoint of a few thousand random weights, and a stand-in that hears how long a clip is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import tokenizers
import torch

from fastspeech import (
    CohereAsrConfig,
    CohereAsrFeatureExtractor,
    CohereAsrForConditionalGeneration,
    CohereAsrProcessor,
    Tokenizer,
)

ROLES = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<|endoftext|>", "bos_token": "<|startoftranscript|>"}
MARKS = [
    "<|nospeech|>",
    "<|startofcontext|>",
    "<|emo:undefined|>",
    *(f"<|{language}|>" for language in ("en", "de", "ja", "es")),
    "<|pnc|>",
    "<|nopnc|>",
    "<|noitn|>",
    "<|notimestamp|>",
    "<|nodiarize|>",
]
SECONDS = 60
"""The words are "0s", "1s", ... of this many seconds."""


def processor(**options: Any) -> CohereAsrProcessor:
    """Clips of more than 4 s are cut into chunks of up to 5 s; features are small."""
    pieces = [*ROLES.values(), *MARKS, "▁", *(f"▁{second}s" for second in range(SECONDS)), "▁"]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, unk_token="<unk>")
    )
    backend.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.Fuse()])
    tokenizer = Tokenizer(backend, additional_special_tokens=MARKS, **ROLES)
    short = {"feature_size": 16, "max_audio_clip_s": 5.0, "overlap_chunk_second": 1.0}
    return CohereAsrProcessor(CohereAsrFeatureExtractor(**short | options), tokenizer)


def model(seed: int = 0) -> CohereAsrForConditionalGeneration:
    """Random weights, so large that what they say depends on the sound."""
    vocabulary = processor().tokenizer
    config = CohereAsrConfig(
        encoder_config={
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "subsampling_factor": 4,
            "subsampling_conv_channels": 8,
            "num_mel_bins": 16,
            "initializer_range": 0.3,
        },
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        pad_token_id=vocabulary.pad_token_id,
        eos_token_id=vocabulary.eos_token_id,
        bos_token_id=vocabulary.bos_token_id,
        decoder_start_token_id=vocabulary.convert_tokens_to_ids("▁"),
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    return CohereAsrForConditionalGeneration(config).eval()


def save(folder: Path) -> Path:
    model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


class Clock:
    """Stands in for a model: writes each clip's length, rounded, such as "3s", once for each second.

    Attributes:
        batches: the clips' valid frames, of each call of `generate`.
        calls: what else each call was given.
        hears: whether it writes anything.
    """

    device = torch.device("cpu")
    dtype = torch.float32
    decoder_positions = 1024

    def __init__(self) -> None:
        self.tokenizer = processor().tokenizer
        self.config = SimpleNamespace(model_type="cohere_asr")
        self.generation_config = SimpleNamespace(
            eos_token_id=self.tokenizer.eos_token_id, max_new_tokens=None, max_length=None
        )
        self.batches: list[list[int]] = []
        self.calls: list[dict[str, Any]] = []
        self.hears = True

    def eval(self) -> "Clock":
        return self

    def to(self, device: Any = None, dtype: Any = None) -> "Clock":
        return self

    def generate(
        self,
        input_features: torch.Tensor,
        attention_mask: torch.Tensor,
        decoder_input_ids: torch.Tensor,
        audio_chunk_index: Any,
        max_new_tokens: int,
        **options: Any,
    ) -> torch.Tensor:
        frames = attention_mask.sum(1).tolist()
        self.batches.append(frames)
        self.calls.append({"prompt": decoder_input_ids[0].tolist(), "max_new_tokens": max_new_tokens, **options})
        rows = []
        for prompt, count in zip(decoder_input_ids.tolist(), frames, strict=True):
            seconds = round(count / 100)
            words = [self.tokenizer.convert_tokens_to_ids(f"▁{seconds}s")] * seconds if self.hears else []
            rows.append(prompt + [*words, self.tokenizer.eos_token_id][:max_new_tokens])
        longest = max(len(row) for row in rows)
        return torch.tensor([row + [self.tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
