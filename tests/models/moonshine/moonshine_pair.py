"""The same random Moonshine in transformers and here, and things to give it."""

from functools import cache
from typing import Any

import tokenizers
import torch
import transformers

from fastspeech import MoonshineConfig, MoonshineForConditionalGeneration

EOS = 2
ODD: dict[str, dict[str, Any]] = {
    # three heads of 12, of which 10 dims turn
    "three heads": {"attention_bias": True},
    # moonshine-tiny's heads of 36, padded to 40 in transformers
    "heads of 36": {
        "hidden_size": 72,
        "encoder_num_attention_heads": 2,
        "decoder_num_attention_heads": 2,
        "pad_head_dim_to_multiple_of": 8,
    },
    # moonshine-base's heads of 52 and its rotary factor; one decoder layer less than encoder layers
    "heads of 52": {
        "hidden_size": 104,
        "encoder_num_attention_heads": 2,
        "decoder_num_attention_heads": 2,
        "decoder_num_hidden_layers": 1,
        "partial_rotary_factor": 0.62,
    },
    # four heads of 9; another theta; two matrices for embedding and head
    "heads of 9": {
        "encoder_num_attention_heads": 4,
        "decoder_num_attention_heads": 4,
        "encoder_hidden_act": "relu",
        "rope_theta": 100.0,
        "tie_word_embeddings": False,
    },
}


def settings(name: str) -> dict[str, Any]:
    """Keyword arguments of either library's MoonshineConfig."""
    return {
        "vocab_size": 50,
        "hidden_size": 36,
        "intermediate_size": 44,
        "encoder_num_hidden_layers": 2,
        "decoder_num_hidden_layers": 3,
        "encoder_num_attention_heads": 3,
        "decoder_num_attention_heads": 3,
        "pad_token_id": EOS,
    } | ODD[name]


@cache
def pair(
    name: str, attention: str = "sdpa"
) -> tuple[transformers.MoonshineForConditionalGeneration, MoonshineForConditionalGeneration]:
    """Both libraries' models with the same weights, in evaluation mode; not to be changed.

    Weights are larger than a fresh model's, so that what the decoder writes depends on what it hears and has read.
    """
    torch.manual_seed(0)
    theirs = transformers.MoonshineForConditionalGeneration(transformers.MoonshineConfig(**settings(name)))
    theirs.set_attn_implementation(attention)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            norm = "norm" in key and key.endswith("weight")
            parameter.normal_(1.0 if norm else 0.0, 0.3 if parameter.dim() == 1 else 1.3 * parameter[0].numel() ** -0.5)
    ours = MoonshineForConditionalGeneration(MoonshineConfig(**settings(name)))
    ours.load_state_dict(theirs.state_dict())
    return theirs.eval(), ours.eval()


def audio(lengths: tuple[int, ...] = (9000, 6000, 2000)) -> dict[str, torch.Tensor]:
    """Clips of so many samples, 0 behind their ends, and the mask."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    clips = 0.2 * torch.randn(mask.shape, generator=generator)
    return {"input_values": clips * mask, "attention_mask": mask.int()}


def tokens(rows: int, count: int) -> torch.Tensor:
    return torch.randint(3, 50, (rows, count), generator=torch.Generator().manual_seed(2))


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def backend() -> tokenizers.Tokenizer:
    """A small vocabulary of the checkpoints' kind: `<s>` put first, no `</s>` put last."""
    pieces = ["<unk>", "<s>", "</s>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, merges=[], unk_token="<unk>")
    )
    made.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    made.decoder = tokenizers.decoders.Sequence(
        [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.Fuse(), tokenizers.decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made
