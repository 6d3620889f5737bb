"""CohereAsr checkpoints: transformers' layout both ways, and the released one."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from cohere_pair import ODD, ROLES, audio, backend, pair, settings, tokens, worst
from safetensors.torch import save_file

from fastspeech import (
    CheckpointError,
    CohereAsrConfig,
    CohereAsrFeatureExtractor,
    CohereAsrForConditionalGeneration,
    CohereAsrModel,
    CohereAsrProcessor,
    Tokenizer,
)
from fastspeech.models.cohere_asr.keys import MEL_FILTERS, model_key, released_key


@pytest.mark.parametrize("name", ODD)
def test_round_trips(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name)
    inputs = audio(ours) | {"decoder_input_ids": tokens(3, 6)}
    with torch.no_grad():
        expected = ours(**inputs).logits  # also packs weights, which must not show in what is saved
        ours.save_pretrained(tmp_path / "ours")
        theirs.save_pretrained(tmp_path / "theirs")
        for folder in ("ours", "theirs"):
            back = CohereAsrForConditionalGeneration.from_pretrained(tmp_path / folder)
            assert torch.equal(back(**inputs).logits, expected)
            there = transformers.CohereAsrForConditionalGeneration.from_pretrained(tmp_path / folder)
            assert worst(there(**inputs).logits, expected) <= 1e-4
        # transformers writes what it has loaded in other names than what it has made
        there.save_pretrained(tmp_path / "again")
        again = CohereAsrForConditionalGeneration.from_pretrained(tmp_path / "again")
        assert torch.equal(again(**inputs).logits, expected)


@pytest.mark.parametrize("source", ["ours", "theirs"])
def test_the_bare_model_and_the_one_with_a_head_load_each_other(source: str, tmp_path: Path) -> None:
    theirs, ours = pair("three heads")
    inputs = audio(ours) | {"decoder_input_ids": tokens(3, 6)}
    model = ours if source == "ours" else theirs
    model.save_pretrained(tmp_path / "head")
    model.model.save_pretrained(tmp_path / "bare")
    with torch.no_grad():
        expected = ours.model(**inputs).last_hidden_state
        for folder in ("head", "bare"):
            assert torch.equal(CohereAsrModel.from_pretrained(tmp_path / folder)(**inputs)[0], expected)
        with pytest.warns(UserWarning, match="proj_out"):
            grown = CohereAsrForConditionalGeneration.from_pretrained(tmp_path / "bare")
        assert torch.equal(grown.model(**inputs)[0], expected)


def released_config(config: CohereAsrConfig) -> dict[str, Any]:
    """config.json as the model was released with it (facts: as vLLM and transcribe.cpp read it)."""
    encoder = config.encoder_config
    return {
        "model_type": "cohere_asr",
        "architectures": ["CohereAsrForConditionalGeneration"],
        "auto_map": {"AutoModel": "modeling.Model"},
        "encoder": {
            "feat_in": encoder.num_mel_bins,
            "d_model": encoder.hidden_size,
            "n_layers": encoder.num_hidden_layers,
            "n_heads": encoder.num_attention_heads,
            "ff_expansion_factor": encoder.intermediate_size // encoder.hidden_size,
            "conv_kernel_size": encoder.conv_kernel_size,
            "conv_norm_type": "batch_norm",
            "subsampling": "dw_striding",
            "subsampling_factor": encoder.subsampling_factor,
            "subsampling_conv_channels": encoder.subsampling_conv_channels,
            "self_attention_model": "rel_pos",
            "untie_biases": True,
            "xscaling": encoder.scale_input,
            "pos_emb_max_len": encoder.max_position_embeddings,
            "att_context_size": [-1, -1],
        },
        "transf_decoder": {
            "config_dict": {
                "hidden_size": config.hidden_size,
                "inner_size": config.intermediate_size,
                "num_layers": config.num_hidden_layers,
                "num_attention_heads": config.num_attention_heads,
                "hidden_act": "relu",
                "max_sequence_length": config.max_position_embeddings,
                "pre_ln": True,
                "learn_positional_encodings": False,
            }
        },
        "head": {"hidden_size": config.hidden_size, "num_classes": config.vocab_size, "log_softmax": True},
        "preprocessor": {"sample_rate": 16000, "features": encoder.num_mel_bins, "n_fft": 512},
        "supported_languages": ["en", "ar"],
        "max_audio_clip_s": 35,
    }


def save_released(folder: Path) -> CohereAsrForConditionalGeneration:
    """A random model in the released layout; returns it."""
    values = settings("three heads") | {"head_dim": None}
    # none of these as in the class's defaults, which a field that is not read would leave
    values["encoder_config"] = values["encoder_config"] | {"intermediate_size": 120, "scale_input": True}
    values["encoder_config"]["max_position_embeddings"] = 300
    torch.manual_seed(3)
    model = CohereAsrForConditionalGeneration(CohereAsrConfig(**values)).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            module.running_mean.normal_()
    stored = {released_key(name): tensor.clone() for name, tensor in model.state_dict().items()}
    stored[MEL_FILTERS] = torch.rand(1, 20, 257).bfloat16()
    stored["preprocessor.featurizer.window"] = torch.rand(400)
    folder.mkdir()
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(released_config(model.config)))
    (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 7, "eos_token_id": 3}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"feature_size": 20, "n_window_size": 400}))
    return model


def test_the_released_layout(tmp_path: Path) -> None:
    made = save_released(tmp_path / "released")
    loaded = CohereAsrForConditionalGeneration.from_pretrained(tmp_path / "released")
    inputs = audio(made) | {"decoder_input_ids": tokens(3, 6)}
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, made(**inputs).logits)
    assert loaded.generation_config.decoder_start_token_id == 7
    assert loaded.config.encoder_config == made.config.encoder_config
    assert not hasattr(loaded.config, "transf_decoder") and loaded.config.supported_languages == ["en", "ar"]
    # and once saved it is transformers' layout
    loaded.save_pretrained(tmp_path / "own")
    theirs = transformers.CohereAsrForConditionalGeneration.from_pretrained(tmp_path / "own")
    with torch.no_grad():
        assert worst(theirs(**inputs).logits, made(**inputs).logits) <= 1e-4


def test_names_of_the_released_layout() -> None:
    for released, own in {
        "encoder.pre_encode.conv.3.weight": "encoder.subsampling.layers.3.weight",
        "encoder.pre_encode.out.bias": "encoder.subsampling.linear.bias",
        "encoder.layers.12.self_attn.linear_pos.weight": "encoder.layers.12.self_attn.relative_k_proj.weight",
        "encoder.layers.0.self_attn.pos_bias_v": "encoder.layers.0.self_attn.bias_v",
        "encoder.layers.0.conv.batch_norm.num_batches_tracked": "encoder.layers.0.conv.norm.num_batches_tracked",
        "encoder.layers.0.norm_out.weight": "encoder.layers.0.norm_out.weight",
        "transf_decoder._embedding.position_embedding.pos_enc": "decoder.pos_emb.weight",
        "transf_decoder._decoder.layers.7.second_sub_layer.key_net.bias": "decoder.layers.7.encoder_attn.k_proj.bias",
        "transf_decoder._decoder.layers.7.third_sub_layer.dense_in.bias": "decoder.layers.7.mlp.fc1.bias",
        "transf_decoder._decoder.layers.7.layer_norm_2.bias": "decoder.layers.7.post_attention_layernorm.bias",
        "transf_decoder._decoder.final_layer_norm.weight": "decoder.norm.weight",
        "encoder_decoder_proj.weight": "decoder.proj.weight",
        "log_softmax.mlp.layer0.bias": "proj_out.bias",
    }.items():
        assert model_key(released) == own == model_key(own)
        assert model_key("model." + released) == "model." + own
        assert released_key("model." + own) == released_key(own) == released
    assert model_key("preprocessor.featurizer.fb") is None


@pytest.mark.parametrize("field, value", [("conv_norm_type", "layer_norm"), ("untie_biases", False), ("pre_ln", False)])
def test_a_released_model_of_another_kind_is_refused(field: str, value: Any, tmp_path: Path) -> None:
    made = save_released(tmp_path / "released")
    values = copy.deepcopy(released_config(made.config))
    part = values["transf_decoder"]["config_dict"] if field == "pre_ln" else values["encoder"]
    part[field] = value
    (tmp_path / "released" / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=f"{field} is {value!r}"):
        CohereAsrForConditionalGeneration.from_pretrained(tmp_path / "released")


def test_the_mel_bank_of_the_checkpoint(tmp_path: Path) -> None:
    save_released(tmp_path / "released")
    computed = CohereAsrFeatureExtractor.from_pretrained(tmp_path / "released")
    stored = CohereAsrFeatureExtractor.from_pretrained(tmp_path / "released", mel_filters="checkpoint")
    assert stored.mel_filters.shape == computed.mel_filters.shape == (20, 257)
    clip = torch.rand(4000) - 0.5
    one, other = (e(clip, sampling_rate=16000).input_features for e in (computed, stored))
    assert worst(one, other) > 0.01
    stored.save_pretrained(tmp_path / "saved")
    again = CohereAsrFeatureExtractor.from_pretrained(tmp_path / "saved")
    assert torch.equal(again.mel_filters, stored.mel_filters)
    (tmp_path / "own").mkdir()
    pair("three heads")[1].save_pretrained(tmp_path / "own")
    computed.save_pretrained(tmp_path / "own")
    with pytest.raises(CheckpointError, match=r"holds no preprocessor\.featurizer\.fb"):
        CohereAsrFeatureExtractor.from_pretrained(tmp_path / "own", mel_filters="checkpoint")


def test_processors_round_trip(tmp_path: Path) -> None:
    theirs = transformers.CohereAsrProcessor(
        transformers.CohereAsrFeatureExtractor(feature_size=20, dither=0.0),
        transformers.PreTrainedTokenizerFast(tokenizer_object=backend(), **ROLES),
    )
    ours = CohereAsrProcessor(CohereAsrFeatureExtractor(feature_size=20, dither=0.0), Tokenizer(backend(), **ROLES))
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    clip = torch.rand(4000, generator=torch.Generator().manual_seed(0)).numpy() - 0.5
    asked: dict[str, Any] = {"language": "en", "sampling_rate": 16000, "text": "abc", "return_tensors": "pt"}
    expected = theirs(clip, **asked)
    for cls, folder in (
        (CohereAsrProcessor, "theirs"),
        (CohereAsrProcessor, "ours"),
        (transformers.CohereAsrProcessor, "ours"),
    ):
        found = cls.from_pretrained(tmp_path / folder)(clip, **asked)
        assert worst(found["input_features"], expected["input_features"]) <= 1e-4
        assert found["decoder_input_ids"].tolist() == expected["decoder_input_ids"].tolist()
        assert found["labels"].tolist() == expected["labels"].tolist()
