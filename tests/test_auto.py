"""The Auto classes find the classes of a checkpoint, and refuse what the library does not have."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_cohere

import fastspeech
from fastspeech import CheckpointError
from fastspeech.auto import FAMILIES

AUTO = {
    "AutoConfig": "CohereAsrConfig",
    "AutoModel": "CohereAsrModel",
    "AutoModelForSpeechSeq2Seq": "CohereAsrForConditionalGeneration",
    "AutoProcessor": "CohereAsrProcessor",
    "AutoFeatureExtractor": "CohereAsrFeatureExtractor",
    "AutoTokenizer": "Tokenizer",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_cohere.save(tmp_path_factory.mktemp("checkpoint"))


@pytest.mark.parametrize(("auto", "name"), AUTO.items())
def test_each_class_is_found(checkpoint: Path, auto: str, name: str) -> None:
    found = getattr(fastspeech, auto).from_pretrained(checkpoint)
    assert type(found) is getattr(fastspeech, name)


def test_arguments_reach_the_class(checkpoint: Path) -> None:
    assert fastspeech.AutoConfig.from_pretrained(checkpoint, vocab_size=7).vocab_size == 7
    model = fastspeech.AutoModelForSpeechSeq2Seq.from_pretrained(checkpoint, dtype="bfloat16", local_files_only=True)
    assert str(model.dtype) == "torch.bfloat16"


@pytest.mark.parametrize(("auto", "name"), AUTO.items())
def test_no_code_of_a_checkpoint_is_run(checkpoint: Path, auto: str, name: str) -> None:
    """However much it is trusted, and nothing is left of the permission."""
    found = getattr(fastspeech, auto).from_pretrained(checkpoint, trust_remote_code=True)
    assert type(found) is getattr(fastspeech, name) and not hasattr(found, "trust_remote_code")


def test_a_model_from_its_configuration(checkpoint: Path) -> None:
    config = fastspeech.AutoConfig.from_pretrained(checkpoint)
    assert type(fastspeech.AutoModel.from_config(config)) is fastspeech.CohereAsrModel
    config.model_type = "whisper"
    with pytest.raises(CheckpointError, match="CohereAsrConfig: unknown model_type 'whisper'"):
        fastspeech.AutoModel.from_config(config)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_a_folder_with_only_a_processor(tmp_path: Path, file: str) -> None:
    tiny_cohere.processor().save_pretrained(tmp_path)
    if file == "preprocessor_config.json":
        (tmp_path / "processor_config.json").unlink()
    assert isinstance(fastspeech.AutoProcessor.from_pretrained(tmp_path), fastspeech.CohereAsrProcessor)


def test_the_released_layout_is_known_by_its_fields(tmp_path: Path) -> None:
    released = {"encoder": {"d_model": 32, "n_layers": 1}, "transf_decoder": {"config_dict": {"hidden_size": 16}}}
    (tmp_path / "config.json").write_text(json.dumps(released))
    assert isinstance(fastspeech.AutoConfig.from_pretrained(tmp_path), fastspeech.CohereAsrConfig)


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"model_type": "whisper"}, r"config\.json: unknown model_type 'whisper'; known are cohere_asr"),
        ({"model_type": ["cohere_asr"]}, r"unknown model_type \['cohere_asr'\]"),
        ({"vocab_size": 5}, r"config\.json names no model_type; known are cohere_asr"),
        (None, "has no config.json and no processor of a known model"),
    ],
)
@pytest.mark.parametrize("auto", AUTO)
def test_an_unknown_model_is_refused(tmp_path: Path, auto: str, config: Any, fault: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=fault):
        getattr(fastspeech, auto).from_pretrained(tmp_path)


@pytest.mark.parametrize("auto", AUTO)
def test_auto_classes_have_no_instances(auto: str) -> None:
    with pytest.raises(TypeError, match=rf"use {auto}\.from_pretrained"):
        getattr(fastspeech, auto)()


def test_every_name_in_the_table_exists() -> None:
    for model_type, family in FAMILIES.items():
        assert family.get(family.config).model_type == model_type
        assert family.get(family.generator).config_class is family.get(family.config)
        assert family.get(family.model).config_class is family.get(family.config)
        assert family.get(family.processor).feature_extractor_class
