"""Mimi's files: settings and weights from and to transformers, the decoder half left out, and float32 in every cast."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_kyutai import CODEC, checkpoint_names, hf_codec
from torch import nn

from fastspeech import CheckpointError
from fastspeech.models.kyutai_stt import MimiConfig, MimiModel


def audio() -> torch.Tensor:
    return torch.randn(2, 1, 700, generator=torch.Generator().manual_seed(0))


def codes(model: Any, samples: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.encode(samples).audio_codes


@pytest.mark.parametrize("options", [{}, {"hidden_size": 32}, {"attention_bias": True}], ids=str)
def test_round_trips(tmp_path: Path, options: dict[str, Any]) -> None:
    theirs = hf_codec(**options)
    expected = codes(theirs, audio())
    theirs.save_pretrained(tmp_path / "theirs")
    assert any(name.startswith("decoder.layers") for name in load_file(tmp_path / "theirs" / "model.safetensors"))
    ours = MimiModel.from_pretrained(tmp_path / "theirs")
    assert torch.equal(codes(ours, audio()), expected)

    ours.save_pretrained(tmp_path / "ours")
    written = set(load_file(tmp_path / "ours" / "model.safetensors"))
    assert written < set(load_file(tmp_path / "theirs" / "model.safetensors"))
    assert torch.equal(codes(MimiModel.from_pretrained(tmp_path / "ours"), audio()), expected)
    there, report = transformers.MimiModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(codes(there, audio()), expected)


def test_what_is_missing_or_foreign_is_an_error(tmp_path: Path) -> None:
    hf_codec().save_pretrained(tmp_path)
    whole = load_file(tmp_path / "model.safetensors")
    key = "encoder.layers.1.block.3.conv.weight"
    save_file({name: value for name, value in whole.items() if name != key}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=key):
        MimiModel.from_pretrained(tmp_path)
    save_file(whole | {key: whole[key][:1].contiguous()}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="has the shape"):
        MimiModel.from_pretrained(tmp_path)


class Around(nn.Module):
    """A model that a codec is part of."""

    def __init__(self, codec: MimiModel) -> None:
        super().__init__()
        self.codec_model = codec
        self.head = nn.Linear(2, 2)


def test_float32_whatever_is_asked_for(tmp_path: Path) -> None:
    theirs = hf_codec()
    theirs.save_pretrained(tmp_path)
    expected = codes(theirs, audio())
    ours = MimiModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert ours.config.dtype == torch.float32
    around = Around(ours)
    for cast in (Around.half, Around.bfloat16, Around.double, lambda m: m.to("cpu", torch.bfloat16)):
        cast(around)
        assert around.head.weight.dtype != torch.float32
        floats = [tensor for tensor in ours.state_dict().values() if tensor.is_floating_point()]
        assert {tensor.dtype for tensor in floats} == {torch.float32}
        assert torch.equal(codes(ours, audio()), expected)
    around.to("meta", torch.bfloat16)
    assert {tensor.device.type for tensor in ours.state_dict().values()} == {"meta"}
    # Samples that were cast for the model around are taken as they are.
    rounded = audio().bfloat16()
    there = MimiModel.from_pretrained(tmp_path)
    assert torch.equal(codes(there, rounded), codes(there, rounded.float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codes(there, audio()), expected)


def test_derived_weights_follow_the_parameters() -> None:
    theirs = hf_codec(attention_bias=True, hidden_size=32)
    ours = MimiModel(MimiConfig(**(CODEC | {"attention_bias": True, "hidden_size": 32}))).eval()
    ours.load_state_dict(checkpoint_names(theirs))
    generator = torch.Generator().manual_seed(0)
    before = codes(ours, audio())
    for name, value in checkpoint_names(theirs).items():
        if "layers.1." in name and not name.endswith("initialized"):
            with torch.no_grad():
                value.mul_(0.5 + torch.rand(value.shape, generator=generator))
                ours.state_dict()[name].copy_(value)
            for codebook in theirs.quantizer.modules():
                codebook._embed = None
            assert torch.equal(codes(ours, audio()), codes(theirs, audio())), name
    assert not torch.equal(before, codes(ours, audio()))


def test_settings_agree_with_transformers() -> None:
    for options in ({}, CODEC):
        theirs, ours = transformers.MimiConfig(**options), MimiConfig(**options)
        for name in ("frame_size", "frame_rate", "head_dim", "rope_parameters"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert MimiConfig.from_dict(theirs.to_dict()).to_dict().items() >= ours.to_dict().items()
        assert MimiConfig.from_dict(json.loads(ours.to_json_string())) == ours
        kept = {name for name in theirs.to_dict() if name in ours.to_dict()}
        read = transformers.MimiConfig(**ours.to_dict()).to_dict()
        assert {name: read[name] for name in kept} == {name: theirs.to_dict()[name] for name in kept}


def test_settings_of_older_files() -> None:
    """kyutai/mimi's file, from transformers 4, names the frame rate, and the rotary base apart."""
    config = MimiConfig.from_dict({"model_type": "mimi", "frame_rate": 12.5, "rope_theta": 500.0, "head_dim": None})
    assert (config.frame_rate, config.rope_theta, config.head_dim) == (12.5, 500.0, 64)
    assert config.to_dict()["rope_parameters"] == {"rope_type": "default", "rope_theta": 500.0}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"use_causal_conv": False}, "use_causal_conv=False is not implemented"),
        ({"pad_mode": "reflect"}, "pad_mode='reflect' is not implemented"),
        ({"num_residual_layers": 2}, "num_residual_layers=2 is not implemented"),
        ({"use_conv_shortcut": True}, "use_conv_shortcut=True is not implemented"),
        ({"frame_rate": 25}, "frame_rate must be 12.5"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn' is not implemented"),
        ({"num_attention_heads": 7}, "must divide hidden_size"),
        ({"num_key_value_heads": 3}, "must divide num_attention_heads"),
        ({"num_semantic_quantizers": 32}, "below num_quantizers"),
    ],
)
def test_settings_that_are_not_implemented(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        MimiConfig(**options)
