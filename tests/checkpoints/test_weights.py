import json
import os
import pickle
import random
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastspeech.checkpoints.weights import open_weights, parse_size, save_weights
from fastspeech.errors import CheckpointError

SHARD = "model-00001-of-00003.safetensors"


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(4, 5),
        "a.bias": torch.randn(4, dtype=torch.float64),
        "b.half": torch.randn(7).to(torch.bfloat16),
        "b.count": torch.tensor(3),
        "c.empty": torch.zeros(0, 3, dtype=torch.float16),
        "c.mask": torch.tensor([True, False]),
    }


def assert_same(stored, expected):
    assert set(stored) == set(expected)
    for name, tensor in expected.items():
        assert (stored[name].shape, stored[name].dtype) == (tuple(tensor.shape), tensor.dtype)
        assert torch.equal(stored[name].read(), tensor)


def shard(folder):
    """Three shards; returns their index."""
    save_weights(some_tensors(), folder, max_shard_size=40)
    return folder / "model.safetensors.index.json"


def test_whole(tmp_path):
    save_weights(some_tensors(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert_same(open_weights(tmp_path), some_tensors())
    # what transformers asks of a file before it reads it
    header = (tmp_path / "model.safetensors").read_bytes()
    assert json.loads(header[8 : 8 + struct.unpack("<Q", header[:8])[0]])["__metadata__"] == {"format": "pt"}


def test_shards(tmp_path):
    index = json.loads(shard(tmp_path).read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files == [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
    assert index["metadata"]["total_size"] == 80 + 32 + 14 + 8 + 0 + 2
    assert_same(open_weights(tmp_path), some_tensors())
    for file in files:
        assert sum(t.numel() * t.element_size() for t in load_file(tmp_path / file).values()) <= 80


def test_saved_weights_are_as_readable_as_any_new_file(tmp_path):
    save_weights({"a": torch.zeros(2)}, tmp_path)
    (tmp_path / "other").touch()
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_new_save_replaces_an_old_one(tmp_path):
    save_weights({"old": torch.ones(2)}, tmp_path)
    shard(tmp_path)
    assert_same(open_weights(tmp_path), some_tensors())
    save_weights({"new": torch.ones(3)}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert set(open_weights(tmp_path)) == {"new"}


def test_weights_read_from_a_file_can_be_saved_over_it(tmp_path):
    # they are mapped: written in place, the new values would appear in the tensors already read
    save_weights(some_tensors(), tmp_path)
    read = {name: tensor.read() for name, tensor in open_weights(tmp_path).items()}
    doubled = {name: tensor + tensor for name, tensor in read.items()}
    save_weights(doubled, tmp_path)
    assert_same(open_weights(tmp_path), doubled)
    for name, tensor in some_tensors().items():
        assert torch.equal(read[name], tensor)


def test_transposed_tensors_are_saved(tmp_path):
    tensor = torch.randn(3, 4).t()
    save_weights({"t": tensor}, tmp_path)
    assert torch.equal(open_weights(tmp_path)["t"].read(), tensor)


@pytest.mark.parametrize("zipped", [True, False])
def test_bin_file(tmp_path, zipped):
    torch.save(some_tensors(), tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert_same(open_weights(tmp_path), some_tensors())


def test_bin_shards(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "one.bin")
    torch.save({"b": torch.zeros(2)}, tmp_path / "two.bin")
    index = {"weight_map": {"a": "one.bin", "b": "two.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same(open_weights(tmp_path), {"a": torch.ones(2), "b": torch.zeros(2)})


def test_safetensors_win_over_bin_files(tmp_path):
    save_weights({"safe": torch.ones(1)}, tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"junk")
    assert set(open_weights(tmp_path)) == {"safe"}


def test_no_weights(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{tmp_path.name} has no weights"):
        open_weights(tmp_path)


class Intruder:
    def __reduce__(self):
        return os.mkdir, (os.environ["INTRUDER_FOLDER"],)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_bin_file_does_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.setenv("INTRUDER_FOLDER", str(tmp_path / "was here"))
    torch.save({"a": Intruder()}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not a whole file of tensors alone"):
        open_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Intruder(), protocol=2))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_weights(tmp_path)
    assert not (tmp_path / "was here").exists()


@pytest.mark.parametrize("value", [[torch.ones(1)], {"a": 1.5}, {1: torch.ones(1)}])
def test_a_bin_file_of_other_things_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        open_weights(tmp_path)


@pytest.mark.parametrize("part", [0, 4, 8, 60, -1])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_truncated(tmp_path, file, part):
    if file == "model.safetensors":
        save_weights(some_tensors(), tmp_path)
    else:
        torch.save(some_tensors(), tmp_path / file)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[:part])
    with pytest.raises(CheckpointError, match=file):
        open_weights(tmp_path)


@pytest.mark.parametrize("size", [2**20, 2**40, 2**63 - 1, 2**64 - 1])
def test_a_header_larger_than_the_file_is_refused(tmp_path, size):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", size) + b"{}")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        open_weights(tmp_path)


@pytest.mark.parametrize("shape", [[2**40], [2**32, 2**32], [2**63, 2]])
def test_a_tensor_larger_than_the_file_is_refused(tmp_path, shape):
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_weights(tmp_path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("file", ["model.safetensors", "zipped pytorch_model.bin", "old pytorch_model.bin"])
def test_damaged_files_never_do_worse_than_a_checkpoint_error(tmp_path, file):
    kind, _, name = file.rpartition(" ")
    if kind:
        torch.save(some_tensors(), tmp_path / name, _use_new_zipfile_serialization=kind == "zipped")
    else:
        save_weights(some_tensors(), tmp_path)
    whole = (tmp_path / name).read_bytes()
    # past the header of a safetensors file lie numbers, and any number is one
    end = len(whole) if kind else 8 + struct.unpack("<Q", whole[:8])[0]
    chance = random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(end)] = chance.randrange(256)
        (tmp_path / name).write_bytes(damaged)
        try:
            for tensor in open_weights(tmp_path).values():
                tensor.read()
        except CheckpointError:
            refused += 1
    assert refused > 50


def test_an_unsupported_type_is_named(tmp_path):
    save_file({"quantised": torch.zeros(4, dtype=torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="quantised is of the unsupported type F8_E4M3"):
        open_weights(tmp_path)


@pytest.mark.parametrize("target", ["../model.safetensors", "/model.safetensors", "sub/../../model.safetensors"])
def test_a_shard_outside_the_folder_is_refused(tmp_path, target):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_weights({"a": torch.ones(1)}, tmp_path)
    index = {"weight_map": {"a": str(tmp_path / "model.safetensors") if target.startswith("/") else target}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        open_weights(folder)


@pytest.mark.parametrize("link", ["model.safetensors", "model.safetensors.index.json", SHARD])
def test_a_link_out_of_the_folder_is_refused(tmp_path, link):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    shard(folder)
    (folder / link).unlink(missing_ok=True)
    save_weights(some_tensors(), tmp_path)
    (folder / link).symlink_to(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{link} is a link out of the folder"):
        open_weights(folder)


def test_a_missing_shard_is_named(tmp_path):
    shard(tmp_path)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names the shard model-00002-of-00003\.safetensors"):
        open_weights(tmp_path)


def test_an_index_that_does_not_agree_is_refused(tmp_path):
    index = shard(tmp_path)
    content = json.loads(index.read_text())
    content["weight_map"]["ghost"] = SHARD
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"places ghost in model-00001-of-00003\.safetensors"):
        open_weights(tmp_path)


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": ["a"]}, {"weight_map": {"a": 1}}])
def test_an_index_without_a_map_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"index\.json has no weight_map"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 KiB", 1536), ("200mb", 2 * 10**8), (7, 7), ("12", 12)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", 0, "5 pounds", "nan", "inf"])
def test_bad_sizes(text):
    with pytest.raises(ValueError, match="a size is"):
        parse_size(text)
