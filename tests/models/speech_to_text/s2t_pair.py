"""The same random Speech2Text in transformers and here, and things to give it."""

from typing import Any

import torch
import transformers

from fastspeech import Speech2TextConfig, Speech2TextForConditionalGeneration

ODD: dict[str, dict[str, Any]] = {
    # a decoder deeper than the encoder, with other heads than it, of an odd dimension
    "deep decoder": {
        "d_model": 36,
        "encoder_layers": 1,
        "encoder_attention_heads": 3,
        "decoder_layers": 3,
        "decoder_attention_heads": 4,
    },
    # three convolutions, an untied head, embeddings as they are, another activation
    "untied": {
        "d_model": 24,
        "num_conv_layers": 3,
        "conv_kernel_sizes": (3, 5, 3),
        "conv_channels": 14,
        "input_feat_per_channel": 7,
        "input_channels": 2,
        "encoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_layers": 2,
        "decoder_attention_heads": 2,
        "activation_function": "gelu",
        "scale_embedding": False,
        "tie_word_embeddings": False,
        "max_target_positions": 12,
        "max_source_positions": 5,
    },
}


def settings(name: str) -> dict[str, Any]:
    """Keyword arguments of either library's Speech2TextConfig."""
    sizes = {
        "vocab_size": 50,
        "encoder_ffn_dim": 44,
        "decoder_ffn_dim": 28,
        "conv_channels": 22,
        "input_feat_per_channel": 14,
        "max_source_positions": 100,
        "max_target_positions": 60,
    }
    return sizes | ODD[name]


def pair(name: str, **more: Any) -> tuple[Any, Speech2TextForConditionalGeneration]:
    """Both libraries' models with the same weights, in evaluation mode.

    Weights are larger than a fresh model's, so that what the decoder writes depends on what it hears and has read.
    """
    torch.manual_seed(3)
    theirs = transformers.Speech2TextForConditionalGeneration(transformers.Speech2TextConfig(**settings(name) | more))
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            norm = "norm" in key and key.endswith("weight")
            parameter.normal_(1.0 if norm else 0.0, 0.2 if parameter.dim() == 1 else 0.3)
    ours = Speech2TextForConditionalGeneration(Speech2TextConfig(**settings(name) | more))
    ours.load_state_dict(theirs.state_dict())
    ours.tie_weights()
    return theirs.eval(), ours.eval()


def audio(model: Any, lengths: tuple[int, ...] = (67, 41, 30)) -> dict[str, torch.Tensor]:
    """Features and mask of clips of so many frames, 0 behind their ends as the extractor leaves them."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    bins = model.config.input_feat_per_channel * model.config.input_channels
    features = torch.randn(len(lengths), max(lengths), bins, generator=generator) * mask[..., None]
    return {"input_features": features, "attention_mask": mask.int()}


def tokens(rows: int, count: int) -> torch.Tensor:
    return torch.randint(4, 50, (rows, count), generator=torch.Generator().manual_seed(2))


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()
