"""The layout in which CohereAsr was released (NeMo's names), and the one of transformers, which is this library's.

The names are those of transformers' conversion table for `cohere_asr`; the fields of the released config.json are those
that vLLM, nano-cohere-transcribe and transcribe.cpp read.
"""

from collections.abc import Callable
from typing import Any

MEL_FILTERS = "preprocessor.featurizer.fb"
"""The mel bank of a released checkpoint, (1, bins, n_fft // 2 + 1), trained with the model."""

_PREFIXES = {
    "encoder.pre_encode.conv.": "encoder.subsampling.layers.",
    "encoder.pre_encode.out.": "encoder.subsampling.linear.",
    "transf_decoder._embedding.token_embedding.": "decoder.embed_tokens.",
    "transf_decoder._embedding.position_embedding.pos_enc": "decoder.pos_emb.weight",
    "transf_decoder._embedding.layer_norm.": "decoder.embedding_layernorm.",
    "transf_decoder._decoder.final_layer_norm.": "decoder.norm.",
    "encoder_decoder_proj.": "decoder.proj.",
    "log_softmax.mlp.layer0.": "proj_out.",
}
_ENCODER_LAYERS = {"encoder.layers.": "encoder.layers."}
_DECODER_LAYERS = {"transf_decoder._decoder.layers.": "decoder.layers."}
_IN_ENCODER_LAYER = {
    "self_attn.linear_q.": "self_attn.q_proj.",
    "self_attn.linear_k.": "self_attn.k_proj.",
    "self_attn.linear_v.": "self_attn.v_proj.",
    "self_attn.linear_out.": "self_attn.o_proj.",
    "self_attn.linear_pos.": "self_attn.relative_k_proj.",
    "self_attn.pos_bias_u": "self_attn.bias_u",
    "self_attn.pos_bias_v": "self_attn.bias_v",
    "conv.batch_norm.": "conv.norm.",
}
_IN_DECODER_LAYER = {
    f"{released}.{part}.": f"{name}.{projection}."
    for released, name in (("first_sub_layer", "self_attn"), ("second_sub_layer", "encoder_attn"))
    for part, projection in (
        ("query_net", "q_proj"),
        ("key_net", "k_proj"),
        ("value_net", "v_proj"),
        ("out_projection", "o_proj"),
    )
} | {
    "third_sub_layer.dense_in.": "mlp.fc1.",
    "third_sub_layer.dense_out.": "mlp.fc2.",
    "layer_norm_1.": "input_layernorm.",
    "layer_norm_2.": "post_attention_layernorm.",
    "layer_norm_3.": "final_layernorm.",
}


def model_key(name: str) -> str | None:
    """This library's name for a tensor of either layout, with the prefix "model." where `name` has it; None for what
    belongs to the front end.

    transformers writes a model that it did not load in the released names, prefix included.
    """
    if name.startswith("preprocessor.featurizer."):
        return None
    prefix = "model." if name.startswith("model.") else ""
    return prefix + _translated(name.removeprefix(prefix), dict)


def released_key(name: str) -> str:
    """The name in a released checkpoint of a tensor of this library's model."""
    return _translated(name.removeprefix("model."), _inverse)


def _translated(name: str, direction: Callable[[dict[str, str]], dict[str, str]]) -> str:
    for prefixes, inner in ((_ENCODER_LAYERS, _IN_ENCODER_LAYER), (_DECODER_LAYERS, _IN_DECODER_LAYER)):
        for old, new in direction(prefixes).items():
            if name.startswith(old):
                number, _, rest = name.removeprefix(old).partition(".")
                return f"{new}{number}.{_renamed(rest, direction(inner))}"
    return _renamed(name, direction(_PREFIXES))


def _inverse(table: dict[str, str]) -> dict[str, str]:
    return {new: old for old, new in table.items()}


def _renamed(name: str, table: dict[str, str]) -> str:
    return next((new + name.removeprefix(old) for old, new in table.items() if name.startswith(old)), name)


def is_released_config(values: dict[str, Any]) -> bool:
    """Whether a config.json has the released layout."""
    return "transf_decoder" in values


_ENCODER_FIELDS = {
    "d_model": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "conv_kernel_size": "conv_kernel_size",
    "subsampling_factor": "subsampling_factor",
    "subsampling_conv_channels": "subsampling_conv_channels",
    "feat_in": "num_mel_bins",
    "pos_emb_max_len": "max_position_embeddings",
    "xscaling": "scale_input",
}
_DECODER_FIELDS = {
    "hidden_size": "hidden_size",
    "inner_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "hidden_act": "hidden_act",
    "max_sequence_length": "max_position_embeddings",
}
_ENCODER_REQUIRED = {
    "conv_norm_type": "batch_norm",
    "subsampling": "dw_striding",
    "self_attention_model": "rel_pos",
    "untie_biases": True,
}
_DECODER_REQUIRED = {"pre_ln": True}
_PARTS = ("encoder", "transf_decoder", "head", "preprocessor", "auto_map")


def translate_config(values: dict[str, Any]) -> dict[str, Any]:
    """The fields of `CohereAsrConfig` for the content of a released config.json.

    Raises:
        ValueError: a model built otherwise than CohereAsr.
    """
    encoder = values.get("encoder", {})
    decoder = values["transf_decoder"].get("config_dict", {})
    for part, required in ((encoder, _ENCODER_REQUIRED), (decoder, _DECODER_REQUIRED)):
        for field, value in required.items():
            if part.get(field, value) != value:
                raise ValueError(f"{field} is {part[field]!r}; CohereAsr has {value!r}")
    encoder_config = {own: encoder[field] for field, own in _ENCODER_FIELDS.items() if field in encoder}
    if "ff_expansion_factor" in encoder and "d_model" in encoder:
        encoder_config["intermediate_size"] = encoder["ff_expansion_factor"] * encoder["d_model"]
    translated = {own: decoder[field] for field, own in _DECODER_FIELDS.items() if field in decoder}
    if "num_classes" in values.get("head", {}):
        translated["vocab_size"] = values["head"]["num_classes"]
    rest = {field: value for field, value in values.items() if field not in _PARTS}
    return {"encoder_config": encoder_config, **translated, **rest}
