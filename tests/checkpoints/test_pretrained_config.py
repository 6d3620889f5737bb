import copy
import json

import pytest
import torch
from toy import ToyConfig

from fastspeech.checkpoints import PretrainedConfig
from fastspeech.errors import CheckpointError


class PartConfig(PretrainedConfig):
    model_type = "part"

    def __init__(self, depth: int = 2, **kwargs) -> None:
        self.depth = depth
        super().__init__(**kwargs)


class WholeConfig(PretrainedConfig):
    model_type = "whole"

    def __init__(self, part_config: PartConfig | dict | None = None, **kwargs) -> None:
        if not isinstance(part_config, PartConfig):
            part_config = PartConfig(**part_config or {})
        self.part_config = part_config
        super().__init__(**kwargs)


def test_round_trip_keeps_what_nobody_names(tmp_path):
    config = ToyConfig(width=9, dtype=torch.bfloat16, num_beams=5, rope_parameters={"rope_theta": 1e4})
    config.save_pretrained(tmp_path / "new" / "folder")
    loaded = ToyConfig.from_pretrained(tmp_path / "new" / "folder")
    assert loaded == config
    assert (loaded.width, loaded.dtype, loaded.num_beams) == (9, torch.bfloat16, 5)
    assert loaded.rope_parameters == {"rope_theta": 1e4}
    assert json.loads(loaded.to_json_string())["dtype"] == "bfloat16"


def test_overrides(tmp_path):
    ToyConfig(width=9).save_pretrained(tmp_path)
    assert ToyConfig.from_pretrained(tmp_path, width=3).width == 3
    # the examples of the documentation call it on an instance too
    assert ToyConfig().from_pretrained(tmp_path).width == 9


def test_what_the_last_writer_said_of_itself_is_not_kept():
    values = {"model_type": "toy", "width": 3, "transformers_version": "4.0", "_name_or_path": "x"}
    written = ToyConfig.from_dict(values, torch_dtype="float16").to_dict()
    assert written["dtype"] == "float16"
    assert not {"transformers_version", "_name_or_path", "torch_dtype"} & written.keys()


def test_aliases():
    config = ToyConfig(width=9)
    assert config.d_model == 9
    config.d_model = 4
    assert config.width == 4
    assert "d_model" not in config.to_dict()
    assert ToyConfig(d_model=7).width == 7
    with pytest.raises(AttributeError, match="ToyConfig has no field 'hidden_size'"):
        config.hidden_size  # noqa: B018


def test_parts(tmp_path):
    config = WholeConfig(part_config={"depth": 7})
    config.save_pretrained(tmp_path)
    assert config.to_dict()["part_config"]["model_type"] == "part"
    loaded = WholeConfig.from_pretrained(tmp_path)
    assert loaded == config
    assert loaded.part_config.depth == 7
    assert PartConfig.from_pretrained(tmp_path) == config.part_config


def test_copies_are_equal_and_apart():
    config = ToyConfig(rope_parameters={"rope_theta": 1e4})
    other = copy.deepcopy(config)
    assert other == config
    other.rope_parameters["rope_theta"] = 1
    config.to_dict()["rope_parameters"]["rope_theta"] = 2
    assert config.rope_parameters == {"rope_theta": 1e4}
    assert other != config
    assert ToyConfig() != PartConfig()


def test_the_config_of_another_model_is_refused(tmp_path):
    PartConfig().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"config\.json: the model type is 'part'; ToyConfig reads 'toy'"):
        ToyConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"there is no folder"):
        ToyConfig.from_pretrained(tmp_path / "missing")
