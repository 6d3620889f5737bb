"""Kyutai STT of a few thousand random weights: the sizes of transformers' own tests, and windows that soon wrap."""

from pathlib import Path
from typing import Any, TypeVar, cast

import tokenizers
import torch
import transformers
from torch import nn

import fastspeech

Codec = TypeVar("Codec", bound=nn.Module)

CODEC: dict[str, Any] = {
    "hidden_size": 16,
    "num_filters": 8,
    "upsampling_ratios": [8, 4],
    "codebook_size": 16,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "num_quantizers": 8,
    "num_hidden_layers": 2,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "sliding_window": 4,
    "upsample_groups": 16,
}
"""A codec of 64 samples a frame that attends to 4 latents, which are 2 frames."""


@torch.no_grad()
def hf_codec(seed: int = 0, **options: Any) -> transformers.MimiModel:
    """transformers' codec, with weights that make codes depend on everything that leads to them."""
    torch.manual_seed(seed)
    codec = spread(transformers.MimiModel(transformers.MimiConfig(**(CODEC | options))).eval())
    # A new Transformer adds next to nothing to what the convolutions make.
    for name, parameter in codec.named_parameters():
        if name.endswith(("_proj.weight", "fc1.weight", "fc2.weight")):
            parameter.normal_(0.0, 1.5 * parameter[0].numel() ** -0.5)
        elif name.endswith("_proj.bias"):
            parameter.normal_(0.0, 0.5)
    return codec


@torch.no_grad()
def spread(codec: Codec) -> Codec:
    """`codec` with layer scales of about 1 and codebooks about as wide as what they meet; a new one has 0.01 and 0."""
    state = codec.state_dict()
    for name, tensor in state.items():
        if name.endswith("layer_scale.scale"):
            tensor.normal_(1.0, 0.1)
        elif name.endswith("cluster_usage"):
            # Where hardly anything was counted, the least count divides.
            tensor.uniform_(0.5, 8.0)[::7] = 0
            state[name.replace("cluster_usage", "embed_sum")].normal_().mul_(tensor.clamp(min=1e-5)[:, None])
        elif "layernorm" in name:
            tensor.normal_(float(name.endswith("weight")), 0.1)
    return codec


def checkpoint_names(codec: transformers.MimiModel) -> dict[str, torch.Tensor]:
    """The encoder half's weights under the names of files; transformers 5.23 groups its modules otherwise in memory."""
    halves = {"encoder.encoder_seanet.": "encoder.", "encoder.": "", "quantizer.": "quantizer."}
    names = {}
    for key, tensor in codec.state_dict().items():
        half = next((half for half in halves if key.startswith(half)), None)
        if half is not None:
            names[halves[half] + key.removeprefix(half)] = tensor
    return names


PIECES = ["<unk>", "<s>", "</s>", "<pad>", *(f"▁w{number}" for number in range(37))]

SIZES: dict[str, Any] = {
    "codebook_vocab_size": 17,
    "vocab_size": len(PIECES),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "ffn_dim": 44,
    "sliding_window": 6,
    "num_codebooks": 8,
    "audio_bos_token_id": 16,
    "audio_pad_token_id": len(PIECES) + 8 * 17,
    # As in the released models, whose 48000 is no text and read as a code.
    "bos_token_id": len(PIECES) + 5 * 17 + 3,
}
"""A decoder that sees 6 tokens."""


@torch.no_grad()
def stir(model: Codec) -> Codec:
    """`model` with weights that make each token depend on what is heard and has been written."""
    for name, parameter in model.named_parameters():
        if name.startswith("codec_model."):
            continue
        if "norm" in name:
            parameter.normal_(1.0, 0.3)
        else:
            parameter.normal_(0.0, 0.5 if "embed" in name else 1.3 * parameter[0].numel() ** -0.5)
        if "embed" in name:
            parameter[-1] = 0
    spread(cast(nn.Module, model.codec_model))
    return model


def processor(**options: Any) -> fastspeech.KyutaiSpeechToTextProcessor:
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
    roles = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    extractor = fastspeech.KyutaiSpeechToTextFeatureExtractor(
        **{"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.25} | options
    )
    return fastspeech.KyutaiSpeechToTextProcessor(extractor, fastspeech.Tokenizer(backend, **roles))


def model(seed: int = 0, **options: Any) -> fastspeech.KyutaiSpeechToTextForConditionalGeneration:
    """A model whose codec has frames as long as the released one's, 80 ms."""
    torch.manual_seed(seed)
    codec = CODEC | {"upsampling_ratios": [8, 6, 5, 4], "num_filters": 2}
    config = fastspeech.KyutaiSpeechToTextConfig(**SIZES | {"codec_config": codec} | options)
    made = stir(fastspeech.KyutaiSpeechToTextForConditionalGeneration(config).eval())
    # What transformers' conversion script writes.
    made.generation_config.audio_window_size = 1
    made.codec_model.generation_config.use_cache = True
    return made


def save(folder: Path, **options: Any) -> Path:
    """A checkpoint, as transformers reads it."""
    model(**options).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder
