"""The layout in which Kyutai STT was released (moshi's names), and the one of transformers, which is this library's.

A released folder has the decoder in model.safetensors and the codec in a file beside it. The names and the order of
rows are those of the conversion script that comes with transformers' model, and of moshi's own loaders; the pause heads
are those of the checkpoints for moshi's Rust server, whose other names are the same.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastspeech.checkpoints.files import CONFIG_FILE, inside, read_json
from fastspeech.checkpoints.weights import StoredTensor, open_safetensors, open_weights
from fastspeech.errors import CheckpointError

RELEASED_FIELD = "text_card"
"""A field that config.json has in the released layout alone."""

_CODEC_FILES = "mimi-pytorch-*.safetensors"

_FIELDS = {
    "n_q": "num_codebooks",
    "card": "audio_bos_token_id",
    "dim": "hidden_size",
    "num_heads": "num_attention_heads",
    "num_layers": "num_hidden_layers",
    "context": "sliding_window",
    "max_period": "rope_theta",
    "existing_text_padding_id": "pad_token_id",
}
_REQUIRED = {
    "dep_q": 0,
    "causal": True,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
}


def is_released_config(values: Mapping[str, Any]) -> bool:
    """Whether a config.json has the released layout."""
    return RELEASED_FIELD in values


def translate_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `KyutaiSpeechToTextConfig` for the content of a released config.json.

    Raises:
        ValueError: a model built otherwise than Kyutai STT, such as one that speaks.
        KeyError: a size is not there.
    """
    for field, value in _REQUIRED.items():
        if values.get(field, value) != value:
            raise ValueError(f"{field} is {values[field]!r}; Kyutai STT has {value!r}")
    if any(values.get("delays", ())):
        raise ValueError(f"delays are {values['delays']}; Kyutai STT has none")
    translated = {own: values[field] for field, own in _FIELDS.items()}
    codes, text = values["card"] + 1, values["text_card"] + 1
    return translated | {
        "codebook_vocab_size": codes,
        "vocab_size": text,
        "audio_pad_token_id": text + values["n_q"] * codes,
        # of the width that hidden_scale says a gate takes a third
        "ffn_dim": 2 * (2 * int(values["hidden_scale"] * values["dim"]) // 3),
        "codec_config": {"num_quantizers": values["n_q"]},
    }


def silences(values: Mapping[str, Any]) -> dict[str, float]:
    """The settings of the feature extractor for the content of a released config.json."""
    names = ("audio_silence_prefix_seconds", "audio_delay_seconds")
    return {name: values.get("stt_config", {}).get(name, 0.0) for name in names}


def open_either(folder: Path, heads: int, codec_heads: int) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint of either layout, unread, under this library's names.

    Args:
        heads, codec_heads: of the decoder and of the codec, whose queries and keys are reordered in each.

    Raises:
        CheckpointError: a file is missing or damaged, or the rows of a tensor are not as the layout has them.
    """
    stored = open_weights(folder)
    if "text_emb.weight" not in stored:
        return stored
    codec = open_safetensors(_codec_file(folder))
    tensors = _attention(stored, heads, r"transformer\.layers\.(\d+)\.self_attn\.", "model.layers.{}.self_attn.", True)
    tensors = _renamed(tensors, _DECODER)
    codes = [f"emb.{i}.weight" for i in range(sum(name.startswith("emb.") for name in tensors))]
    if missing := [name for name in [*codes, "text_linear.weight"] if name not in tensors]:
        raise CheckpointError(f"{folder} lacks {missing[0]}")
    table = [tensors.pop(name) for name in ("text_emb.weight", *codes)]
    tensors["model.embed_tokens.embed_tokens.weight"] = _with_zeros(table)
    tensors["lm_head.weight"] = _with_zeros([tensors.pop("text_linear.weight")])
    layers = r"encoder_transformer\.transformer\.layers\.(\d+)\.self_attn\."
    codec = _attention(codec, codec_heads, layers, "encoder_transformer.layers.{}.self_attn.", False)
    return tensors | {f"codec_model.{name}": tensor for name, tensor in _renamed(codec, _CODEC).items()}


def _codec_file(folder: Path) -> Path:
    name = read_json(folder, CONFIG_FILE).get("mimi_name")
    if isinstance(name, str):
        path = inside(folder, name)
        if not path.is_file():
            raise CheckpointError(f"{folder / CONFIG_FILE} names the codec {name}, which is not in the folder")
        return path
    found = sorted(folder.glob(_CODEC_FILES))
    if len(found) != 1:
        raise CheckpointError(f"{folder} has {len(found)} files {_CODEC_FILES}, and needs one, the codec")
    return inside(folder, found[0].name)


_DECODER = (
    (r"out_norm\.alpha", "model.norm.weight"),
    (r"transformer\.layers\.(\d+)\.norm1\.alpha", r"model.layers.\1.input_layernorm.weight"),
    (r"transformer\.layers\.(\d+)\.norm2\.alpha", r"model.layers.\1.post_attention_layernorm.weight"),
    (r"transformer\.layers\.(\d+)\.gating\.linear_in\.", r"model.layers.\1.mlp.fc1."),
    (r"transformer\.layers\.(\d+)\.gating\.linear_out\.", r"model.layers.\1.mlp.fc2."),
)
_CODEC = (
    (r"encoder\.model\.(.*)\.conv\.conv\.", r"encoder.layers.\1.conv."),
    (r"downsample\.conv\.conv\.conv\.", "downsample.conv."),
    (r"quantizer\.rvq_first\.", "quantizer.semantic_residual_vector_quantizer."),
    (r"quantizer\.rvq_rest\.", "quantizer.acoustic_residual_vector_quantizer."),
    (r"(quantizer\..*)\.vq\.layers\.(\d+)\._codebook\._initialized", r"\1.layers.\2.codebook.initialized"),
    (r"(quantizer\..*)\.vq\.layers\.(\d+)\._codebook\.cluster_usage", r"\1.layers.\2.codebook.cluster_usage"),
    (r"(quantizer\..*)\.vq\.layers\.(\d+)\._codebook\.embedding_sum", r"\1.layers.\2.codebook.embed_sum"),
    (r"encoder_transformer\.transformer\.layers\.(\d+)\.norm1\.", r"encoder_transformer.layers.\1.input_layernorm."),
    (
        r"encoder_transformer\.transformer\.layers\.(\d+)\.norm2\.",
        r"encoder_transformer.layers.\1.post_attention_layernorm.",
    ),
    (r"encoder_transformer\.transformer\.layers\.(\d+)\.linear([12])\.", r"encoder_transformer.layers.\1.mlp.fc\2."),
    (
        r"encoder_transformer\.transformer\.layers\.(\d+)\.layer_scale_1\.",
        r"encoder_transformer.layers.\1.self_attn_layer_scale.",
    ),
    (
        r"encoder_transformer\.transformer\.layers\.(\d+)\.layer_scale_2\.",
        r"encoder_transformer.layers.\1.mlp_layer_scale.",
    ),
)
"""What the beginning of a name becomes; each that fits is applied, in order."""


def _renamed(tensors: Mapping[str, StoredTensor], table: Sequence[tuple[str, str]]) -> dict[str, StoredTensor]:
    renamed = {}
    for name, tensor in tensors.items():
        new = name
        for old, own in table:
            new = re.sub(f"^{old}", own, new)
        # The norms' weights have two axes of length 1 in front.
        renamed[new] = _made([tensor], tensor.shape[-1:], torch.flatten) if name.endswith(".alpha") else tensor
    return renamed


def _attention(
    tensors: Mapping[str, StoredTensor], heads: int, released: str, own: str, wrapped: bool
) -> dict[str, StoredTensor]:
    """Attention's packed weights taken apart; `wrapped` where a linear map is called `linear` inside its projection.

    moshi has written either of two names for each.
    """
    suffix = ".linear.weight" if wrapped else ".weight"
    result = {}
    for name, tensor in tensors.items():
        if found := re.fullmatch(released + r"(in_proj_weight|in_projs\.0\.weight)", name):
            if len(tensor.shape) != 2 or tensor.shape[0] % (3 * 2 * heads):
                raise CheckpointError(f"{tensor.path}: {name} has the shape {tensor.shape}, which {heads} heads cannot")
            shape = (tensor.shape[0] // 3, tensor.shape[1])
            for place, part in enumerate("qkv"):
                take = _third(place, heads if part in "qk" else None)
                result[f"{own.format(found[1])}{part}_proj{suffix}"] = _made([tensor], shape, take)
        elif found := re.fullmatch(released + r"(out_proj\.weight|out_projs\.0\.weight)", name):
            result[f"{own.format(found[1])}o_proj{suffix}"] = tensor
        else:
            result[name] = tensor
    return result


def _third(place: int, heads: int | None) -> Callable[[Tensor], Tensor]:
    """Queries, keys or values of a packed weight; with `heads`, from pairs side by side to pairs half a head apart."""

    def take(packed: Tensor) -> Tensor:
        part = packed.chunk(3)[place]
        if heads is None:
            return part
        return part.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)

    return take


def _with_zeros(parts: Sequence[StoredTensor]) -> StoredTensor:
    """The rows of all, and one of zeros behind them, which moshi does not store."""
    shape = (sum(part.shape[0] for part in parts) + 1, *parts[0].shape[1:])
    return _made(parts, shape, lambda *tensors: torch.cat([*tensors, torch.zeros_like(tensors[0][:1])]))


def _made(sources: Sequence[StoredTensor], shape: tuple[int, ...], make: Callable[..., Tensor]) -> StoredTensor:
    first = sources[0]
    return StoredTensor(first.path, shape, first.dtype, lambda: make(*(source.read() for source in sources)))
