"""The same random CohereAsr in transformers and here, and things to give it."""

from typing import Any

import tokenizers
import torch
import transformers

from fastspeech import CohereAsrConfig, CohereAsrForConditionalGeneration

START = 7
SEED = 6  # one with which the three clips below are written down differently
LANGUAGES = ("ar", "de", "el", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "vi", "zh")
ROLES = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<|endoftext|>", "bos_token": "<|startoftranscript|>"}

ODD: dict[str, dict[str, Any]] = {
    # three heads of 20, subsampling by 4, five taps
    "three heads": {"encoder": {}, "decoder": {}},
    # grouped queries, no biases in attention and convolutions, subsampling by 8, nine taps, scaled input
    "grouped": {
        "encoder": {
            "subsampling_factor": 8,
            "conv_kernel_size": 9,
            "num_mel_bins": 24,
            "attention_bias": False,
            "convolution_bias": False,
            "scale_input": True,
        },
        "decoder": {"num_key_value_heads": 2, "attention_bias": False, "hidden_act": "gelu"},
    },
    # one key/value head, tied embeddings, another activation than SiLU in the encoder
    "tied": {
        "encoder": {"hidden_act": "relu", "num_attention_heads": 5, "subsampling_factor": 2},
        "decoder": {"num_key_value_heads": 1, "tie_word_embeddings": True},
    },
}


def settings(name: str) -> dict[str, Any]:
    """Keyword arguments of either library's CohereAsrConfig."""
    encoder = {
        "hidden_size": 60,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 44,
        "num_mel_bins": 20,
        "subsampling_factor": 4,
        "subsampling_conv_channels": 6,
        "conv_kernel_size": 5,
    }
    decoder = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "head_dim": 12,
        "intermediate_size": 40,
        "max_position_embeddings": 40,
        "decoder_start_token_id": START,
    }
    odd = ODD[name]
    return {"encoder_config": encoder | odd["encoder"], **decoder, **odd["decoder"]}


def pair(
    name: str, attention: str = "sdpa"
) -> tuple[transformers.CohereAsrForConditionalGeneration, CohereAsrForConditionalGeneration]:
    """Both libraries' models with the same weights, in evaluation mode.

    Weights are larger than a fresh model's, so that what the decoder writes depends on what it hears and has read.
    """
    torch.manual_seed(SEED)
    theirs = transformers.CohereAsrForConditionalGeneration(transformers.CohereAsrConfig(**settings(name)))
    theirs.set_attn_implementation(attention)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            norm = "norm" in key and key.endswith("weight")
            spread = 0.2 if parameter.dim() == 1 else 0.3
            parameter.normal_(1.0 if norm else 0.0, spread)
        for key, buffer in theirs.named_buffers():
            if key.endswith("running_mean"):
                buffer.normal_()
            if key.endswith("running_var"):
                buffer.uniform_(0.5, 2.0)
    ours = CohereAsrForConditionalGeneration(CohereAsrConfig(**settings(name)))
    ours.load_state_dict(theirs.state_dict())
    return theirs.eval(), ours.eval()


def audio(model: CohereAsrForConditionalGeneration, lengths: tuple[int, ...] = (67, 41, 30)) -> dict[str, torch.Tensor]:
    """Features and mask of clips of so many frames, 0 behind their ends as the extractor leaves them."""
    generator = torch.Generator().manual_seed(1)
    frames = max(lengths) + 1
    mask = torch.arange(frames) < torch.tensor(lengths)[:, None]
    bins = model.config.encoder_config.num_mel_bins
    features = torch.randn(len(lengths), frames, bins, generator=generator) * mask[..., None]
    return {"input_features": features, "attention_mask": mask}


def tokens(rows: int, count: int) -> torch.Tensor:
    return torch.randint(8, 50, (rows, count), generator=torch.Generator().manual_seed(2))


def worst(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def backend() -> tokenizers.Tokenizer:
    """A small vocabulary with all tokens of the prompts."""
    marks = ["<|nospeech|>", "<|pnc|>", "<|nopnc|>", "<|startofcontext|>", "<|noitn|>", "<|notimestamp|>"]
    marks += ["<|nodiarize|>", "<|emo:undefined|>", *(f"<|{language}|>" for language in LANGUAGES)]
    pieces = [*ROLES.values(), *marks, "▁", *"abcdefghijklmnopqrstuvwxyz"]
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE({piece: i for i, piece in enumerate(pieces)}, merges=[], unk_token="<unk>")
    )
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    made.decoder = tokenizers.decoders.Metaspace()
    made.add_special_tokens([*ROLES.values(), *marks])
    return made
