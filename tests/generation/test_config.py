"""GenerationConfig: files both ways, precedence, and values that cannot be served."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastspeech import CheckpointError
from fastspeech.generation import GenerationConfig

VALUES: dict[str, Any] = {
    "max_length": 200,
    "num_beams": 5,
    "early_stopping": True,
    "eos_token_id": [2, 7],
    "suppress_tokens": [1, 2],
    "lang_to_id": {"<|en|>": 4},
}


def test_round_trip(tmp_path: Path) -> None:
    config = GenerationConfig(**VALUES, sequence_bias={(3, 4): -1.5})
    config.save_pretrained(tmp_path / "new")
    read = GenerationConfig.from_pretrained(tmp_path / "new", num_beams=2)
    assert read.to_dict() == {**VALUES, "num_beams": 2, "sequence_bias": [[[3, 4], -1.5]]}
    assert config != read and config == GenerationConfig(**VALUES, sequence_bias={(3, 4): -1.5})


def test_transformers_reads_and_writes_the_same_file(tmp_path: Path) -> None:
    theirs = pytest.importorskip("transformers").GenerationConfig
    GenerationConfig(**VALUES, sequence_bias={(3, 4): -1.5}).save_pretrained(tmp_path)
    read = theirs.from_pretrained(tmp_path)
    assert {name: getattr(read, name) for name in VALUES} == VALUES
    theirs(**VALUES).save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).to_dict() == VALUES


def test_our_defaults_are_those_of_transformers() -> None:
    theirs = pytest.importorskip("transformers").GenerationConfig._get_default_generation_params()
    assert {name: theirs[name] for name in GenerationConfig.DEFAULTS} == GenerationConfig.DEFAULTS
    assert theirs["max_length"] == GenerationConfig.NEW_TOKENS


def test_parameters_of_an_old_model_config() -> None:
    values = {"model_type": "speech_to_text", "d_model": 256, "num_beams": 5, "max_length": 200, "pad_token_id": None}
    assert GenerationConfig.from_model_config(values).to_dict() == {"num_beams": 5, "max_length": 200}


def test_update_returns_what_is_no_parameter() -> None:
    config = GenerationConfig(**VALUES)
    rest = config.update(num_beams=1, lang_to_id={}, attention_mask="mask")
    assert rest == {"attention_mask": "mask"}
    assert config.num_beams == 1 and config.lang_to_id == {}  # type: ignore[attr-defined]


def test_filled_from_does_not_overwrite() -> None:
    config = GenerationConfig(num_beams=3)
    filled = config.filled_from(GenerationConfig(num_beams=5, suppress_tokens=[1]))
    assert filled.to_dict() == {"num_beams": 3, "suppress_tokens": [1]}
    assert config.to_dict() == {"num_beams": 3}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"early_stopping": "sometimes"}, "early_stopping"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"num_return_sequences": 2}, "needs num_beams > 1 or do_sample"),
        ({"num_return_sequences": 4, "num_beams": 3}, "must not exceed num_beams=3"),
    ],
)
def test_values_that_cannot_be_served(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**values)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no generation_config\.json"):
        GenerationConfig.from_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps([1]))
    with pytest.raises(CheckpointError, match="not an object"):
        GenerationConfig.from_pretrained(tmp_path)
