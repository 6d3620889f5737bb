"""A CohereAsr checkpoint of a few thousand random weights, and a stand-in that hears how long a clip is."""

from pathlib import Path
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


def config(**options: Any) -> CohereAsrConfig:
    vocabulary = processor().tokenizer
    return CohereAsrConfig(
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
        pad_token_id=vocabulary.pad_token_id,
        eos_token_id=vocabulary.eos_token_id,
        bos_token_id=vocabulary.bos_token_id,
        decoder_start_token_id=vocabulary.convert_tokens_to_ids("▁"),
        initializer_range=0.3,
        **{"max_position_embeddings": 40, **options},
    )


def model(seed: int = 0) -> CohereAsrForConditionalGeneration:
    """Random weights, so large that what they say depends on the sound."""
    torch.manual_seed(seed)
    return CohereAsrForConditionalGeneration(config()).eval()


def save(folder: Path) -> Path:
    model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


class Clock(CohereAsrForConditionalGeneration):
    """Stands in for a model: writes each clip's length, rounded, such as "3s", once for each second.

    Attributes:
        calls: the prompt and the further arguments of each plan that was made.
        rows: how many tokens each step of the decoder gave.
        hears: whether it writes anything.
    """

    def __init__(self) -> None:
        super().__init__(config(max_position_embeddings=1024))
        self.eval()
        self.calls: list[dict[str, Any]] = []
        self.rows: list[int] = []
        self.hears = True

    def planned(self, *given: Any, **named: Any) -> Any:
        found = super().planned(*given, **named)
        of_model = ("input_features", "attention_mask", "decoder_input_ids", "audio_chunk_index")
        asked = {name: value for name, value in named.items() if name not in of_model}
        _, _, prompt, plan = found
        self.calls.append({"prompt": prompt[0].tolist(), **asked})
        tokenizer = processor().tokenizer
        seconds = [round(count / 100) * self.hears for count in named["attention_mask"].sum(1).tolist()]

        def say(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            written = ids.shape[1] - prompt.shape[1]
            texts = [
                tokenizer.convert_tokens_to_ids(f"▁{length}s") if written < length else tokenizer.eos_token_id
                for length in seconds
                for _ in range(len(ids) // len(seconds))
            ]
            return torch.full_like(scores, -1e4).scatter(1, torch.tensor(texts)[:, None], 0.0)

        plan.rules.append(say)
        return found

    def functions(self, product: Any = None) -> Any:
        steps, head = super().functions(product)

        def counted(hidden: torch.Tensor) -> torch.Tensor:
            self.rows.append(len(hidden))
            return head(hidden)

        return steps, counted
