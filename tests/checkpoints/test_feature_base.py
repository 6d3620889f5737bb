import copy
import json
import pickle

import numpy as np
import pytest
import torch

from fastspeech.checkpoints import BatchFeature, FeatureExtractor
from fastspeech.errors import CheckpointError


class ToyExtractor(FeatureExtractor):
    def __init__(self, hop_length: int = 160, **kwargs) -> None:
        if hop_length < 1:
            raise ValueError(f"hop_length must be positive, got {hop_length}")
        self.hop_length = hop_length
        self._window = torch.ones(hop_length)
        super().__init__(**kwargs)


def batch() -> BatchFeature:
    return BatchFeature(
        {
            "features": torch.randn(2, 3),
            "mask": torch.tensor([[True, False]]),
            "ids": torch.tensor([[1, 2]]),
            "index": [(0, None), (1, 0)],
            "text": "label",
        }
    )


def unpacked(**items):
    return items


def test_a_batch_is_a_dictionary_with_attributes():
    inputs = batch()
    assert inputs.features is inputs["features"] is unpacked(**inputs)["features"]
    assert inputs.get("index") == [(0, None), (1, 0)]
    assert list(inputs) == ["features", "mask", "ids", "index", "text"]
    with pytest.raises(AttributeError, match="no item 'labels'; there are features, mask"):
        inputs.labels  # noqa: B018
    inputs["labels"] = torch.tensor([1])
    assert inputs.pop("labels") is not None
    for copied in (copy.deepcopy(inputs), pickle.loads(pickle.dumps(inputs))):
        assert isinstance(copied, BatchFeature)
        assert torch.equal(copied.features, inputs.features)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("cpu",), {"dtype": torch.bfloat16}),
        (("cpu", torch.bfloat16), {}),
        ((torch.bfloat16,), {}),
        ((torch.device("cpu"), torch.bfloat16), {"non_blocking": True}),
        ((), {"device": "cpu", "dtype": torch.bfloat16}),
        ((), {"dtype": torch.bfloat16}),
    ],
)
def test_to_casts_floating_tensors_in_place(args, kwargs):
    inputs = batch()
    assert inputs.to(*args, **kwargs) is inputs
    assert inputs.features.dtype == torch.bfloat16
    assert (inputs.mask.dtype, inputs.ids.dtype) == (torch.bool, torch.int64)
    assert inputs.index == [(0, None), (1, 0)]
    assert inputs.text == "label"


def test_to_moves_every_tensor():
    inputs = batch().to("meta")
    assert {value.device.type for value in inputs.values() if isinstance(value, torch.Tensor)} == {"meta"}
    inputs = batch().to(device="meta", dtype=torch.float16)
    assert inputs.ids.is_meta
    assert inputs.features.dtype == torch.float16


def test_to_refuses_what_is_neither_device_nor_dtype():
    with pytest.raises(ValueError, match="expected a device or a dtype"):
        batch().to([1])


@pytest.mark.parametrize(
    "value",
    [
        [[1.0, 2.0], [3.0, 4.0]],
        np.array([[1.0, 2.0], [3.0, 4.0]], dtype=np.float32),
        [np.array([1.0, 2.0], dtype=np.float32), np.array([3.0, 4.0], dtype=np.float32)],
        [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])],
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    ],
)
def test_conversion(value):
    tensor = BatchFeature({"x": value}, tensor_type="pt").x
    assert torch.equal(tensor, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    array = BatchFeature({"x": value}).convert_to_tensors("np").x
    assert isinstance(array, np.ndarray)
    assert array.tolist() == tensor.tolist()


def test_conversion_leaves_texts_and_what_is_named():
    data = {"text": ["a", "b"], "index": [(0, None)], "none": None, "empty": [], "x": [1]}
    inputs = BatchFeature(data, tensor_type="pt", skip_tensor_conversion=["index"])
    assert (inputs.text, inputs.index, inputs.none) == (["a", "b"], [(0, None)], None)
    assert inputs.x.dtype == torch.int64
    assert data["x"] == [1]
    assert BatchFeature(data, tensor_type=None).x == [1]


def test_conversion_names_what_it_cannot_convert():
    with pytest.raises(ValueError, match="x does not make one tensor"):
        BatchFeature({"x": [[1], [1, 2]]}, tensor_type="pt")
    with pytest.raises(ValueError, match="x does not make one tensor"):
        BatchFeature({"x": [np.ones(1), np.ones(2)]}, tensor_type="np")
    with pytest.raises(ValueError, match="return_tensors must be"):
        BatchFeature({"x": [1]}, tensor_type="tf")


def test_settings_round_trip(tmp_path):
    extractor = ToyExtractor(hop_length=80, n_window_size=400)
    extractor.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert written == {"hop_length": 80, "n_window_size": 400, "feature_extractor_type": "ToyExtractor"}
    loaded = ToyExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == extractor.to_dict()
    assert ToyExtractor.from_pretrained(tmp_path, hop_length=40).hop_length == 40


def test_transformers_5_keeps_the_settings_in_processor_config(tmp_path):
    ToyExtractor(hop_length=80).save_pretrained(tmp_path)
    nested = {"feature_extractor": {"hop_length": 20}, "processor_class": "ToyProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert ToyExtractor.from_pretrained(tmp_path).hop_length == 20
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "ToyProcessor"}))
    assert ToyExtractor.from_pretrained(tmp_path).hop_length == 80


def test_bad_settings_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no preprocessor_config\.json"):
        ToyExtractor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"hop_length": 0}')
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: hop_length must be positive, got 0"):
        ToyExtractor.from_pretrained(tmp_path)
