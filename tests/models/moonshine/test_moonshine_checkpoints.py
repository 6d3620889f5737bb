"""Moonshine's files: configurations of transformers 4 and 5, weights both ways, processors, and the page's examples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from moonshine_pair import ODD, audio, backend, pair, tokens, worst

import fastspeech
from fastspeech import (
    CheckpointError,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    MoonshineModel,
    Tokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

ROLES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}


@pytest.mark.parametrize("name", ODD)
def test_round_trips(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name)
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours", max_shard_size="60KB")
    assert list((tmp_path / "ours").glob("*.index.json"))
    inputs = audio() | {"decoder_input_ids": tokens(3, 6)}
    with torch.no_grad():
        expected = theirs(**inputs).logits
        for folder in ("theirs", "ours"):
            here = MoonshineForConditionalGeneration.from_pretrained(tmp_path / folder)
            assert worst(here(**inputs).logits, expected) <= 1e-4
            bare = MoonshineModel.from_pretrained(tmp_path / folder)
            assert worst(bare(**inputs).last_hidden_state, theirs.model(**inputs).last_hidden_state) <= 1e-4
            there = transformers.MoonshineForConditionalGeneration.from_pretrained(tmp_path / folder)
            assert worst(there(**inputs).logits, expected) <= 1e-4
    written = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert written["architectures"] == ["MoonshineForConditionalGeneration"]
    assert written["rope_parameters"]["partial_rotary_factor"] == written["partial_rotary_factor"]


@pytest.mark.parametrize(
    ("given", "factor", "theta"),
    [
        ({}, 0.9, 10000.0),
        ({"partial_rotary_factor": 0.62, "rope_theta": 500.0, "rope_scaling": None}, 0.62, 500.0),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.62}},
            0.62,
            500.0,
        ),
        # 5.0 wrote both; what is in rope_parameters counts
        (
            {"partial_rotary_factor": 0.9, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.62}},
            0.62,
            10000.0,
        ),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, 0.9, 500.0),
        ({"rope_parameters": None, "partial_rotary_factor": 0.5}, 0.5, 10000.0),
    ],
)
def test_rotary_settings_of_either_version(given: dict[str, Any], factor: float, theta: float) -> None:
    config = MoonshineConfig.from_dict({"model_type": "moonshine", "hidden_size": 416, **given})
    assert (config.partial_rotary_factor, config.rope_theta) == (factor, theta)
    expected = transformers.MoonshineConfig.from_dict({"model_type": "moonshine", **given}).rope_parameters
    assert config.rope_parameters == expected
    again = MoonshineConfig.from_dict(config.to_dict())
    assert again == config
    pairs = MoonshineModel(config).encoder.inverse_frequencies()
    assert len(pairs) == -(-int(52 * factor) // 2)
    assert abs(pairs[1].item() - theta ** (-2 / int(52 * factor))) < 1e-6


def test_another_rotary_type_is_refused() -> None:
    with pytest.raises(ValueError, match="rope_type 'yarn' is not implemented"):
        MoonshineConfig(rope_scaling={"rope_type": "yarn", "factor": 2.0})


def test_names_without_their_side() -> None:
    """The decoder's, as transformers 5 has it; in a file of transformers 4 the encoder's."""
    config = MoonshineConfig(num_attention_heads=4, num_hidden_layers=2)
    assert (config.decoder_num_attention_heads, config.encoder_num_attention_heads) == (4, 8)
    assert (config.num_hidden_layers, config.hidden_act) == (2, "silu")
    file = {"model_type": "moonshine", "num_hidden_layers": 3, "decoder_num_hidden_layers": 5}
    for version, sides in (("4.56.2", (3, 5)), ("5.23.0", (6, 5))):
        config = MoonshineConfig.from_dict({**file, "transformers_version": version})
        assert (config.encoder_num_hidden_layers, config.decoder_num_hidden_layers) == sides


@pytest.mark.parametrize(
    "wrong",
    [{"encoder_num_attention_heads": 7}, {"decoder_num_key_value_heads": 3}, {"encoder_num_key_value_heads": 0}],
)
def test_heads_that_do_not_divide(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must divide"):
        MoonshineConfig(**wrong)


def test_a_wrong_checkpoint_says_what_is_wrong(tmp_path: Path) -> None:
    pair("three heads")[1].save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"encoder_num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"encoder\.layers\.2"):
        MoonshineForConditionalGeneration.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values | {"encoder_num_attention_heads": 5}))
    with pytest.raises(CheckpointError, match="must divide"):
        MoonshineForConditionalGeneration.from_pretrained(tmp_path)


def extractor() -> dict[str, Any]:
    """The settings of the released extractors."""
    return {"do_normalize": False, "return_attention_mask": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the hub ids of the page's examples hold, small and random, saved by transformers."""
    folder = tmp_path_factory.mktemp("moonshine")
    pair("three heads")[0].save_pretrained(folder)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend(), **ROLES)
    features = transformers.Wav2Vec2FeatureExtractor(**extractor())
    transformers.Wav2Vec2Processor(features, tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("version", [4, 5])
def test_processor_files_of_either_version(checkpoint: Path, tmp_path: Path, version: int) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if version == 4:
        values = json.loads((tmp_path / "processor_config.json").read_text())["feature_extractor"]
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
        (tmp_path / "processor_config.json").write_text('{"processor_class": "Wav2Vec2Processor"}')
    processor = fastspeech.AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is Wav2Vec2Processor
    assert not processor.feature_extractor.do_normalize
    assert processor.feature_extractor.return_attention_mask
    assert type(fastspeech.AutoFeatureExtractor.from_pretrained(tmp_path)) is Wav2Vec2FeatureExtractor
    assert type(fastspeech.AutoTokenizer.from_pretrained(tmp_path)) is Tokenizer
    processor.save_pretrained(tmp_path / "again")
    theirs = transformers.Wav2Vec2Processor.from_pretrained(tmp_path / "again")
    assert not theirs.feature_extractor.do_normalize
    assert theirs.feature_extractor.return_attention_mask
    assert type(fastspeech.AutoProcessor.from_pretrained(tmp_path / "again")) is Wav2Vec2Processor
    clips = [clip.numpy() for clip in audio()["input_values"]]
    expected = theirs(clips, sampling_rate=16000, return_tensors="pt", padding=True, text=["ab c", "d", ""])
    found = processor(clips, sampling_rate=16000, return_tensors="pt", padding=True, text=["ab c", "d", ""])
    assert set(found) == set(expected)
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_auto_classes(checkpoint: Path) -> None:
    assert isinstance(fastspeech.AutoConfig.from_pretrained(checkpoint), MoonshineConfig)
    assert isinstance(fastspeech.AutoModel.from_pretrained(checkpoint), MoonshineModel)
    model = fastspeech.AutoModelForSpeechSeq2Seq.from_pretrained(checkpoint, dtype="bfloat16")
    assert isinstance(model, MoonshineForConditionalGeneration)
    assert model.dtype == torch.bfloat16


def test_the_pages_examples(checkpoint: Path) -> None:
    """With a random checkpoint in the place of the hub's, and noise in the place of the data set."""
    array = np.random.default_rng(0).standard_normal(16000) * 0.1

    configuration = MoonshineConfig().from_pretrained(checkpoint)
    model = MoonshineModel(configuration)
    configuration = model.config

    model = MoonshineModel.from_pretrained(checkpoint)
    feature_extractor = fastspeech.AutoFeatureExtractor.from_pretrained(checkpoint)
    with pytest.warns(UserWarning, match="sampling rate is not stated"):
        inputs = feature_extractor(array, return_tensors="pt")
    input_values = inputs.input_values
    decoder_input_ids = torch.tensor([[1, 1]]) * model.config.decoder_start_token_id
    last_hidden_state = model(input_values, decoder_input_ids=decoder_input_ids).last_hidden_state
    assert list(last_hidden_state.shape) == [1, 2, configuration.hidden_size]

    processor = fastspeech.AutoProcessor.from_pretrained(checkpoint)
    model = MoonshineForConditionalGeneration.from_pretrained(checkpoint)
    with pytest.warns(UserWarning, match="sampling rate is not stated"):
        inputs = processor(array, return_tensors="pt")
    input_values = inputs.input_values
    generated_ids = model.generate(input_values, max_new_tokens=100)
    transcription = processor.batch_decode(generated_ids, skip_special_tokens=True)[0]
    theirs = transformers.MoonshineForConditionalGeneration.from_pretrained(checkpoint)
    there = transformers.Wav2Vec2Processor.from_pretrained(checkpoint)
    expected = theirs.generate(there(array, return_tensors="pt").input_values, max_new_tokens=100)
    assert transcription == there.batch_decode(expected, skip_special_tokens=True)[0] != ""
