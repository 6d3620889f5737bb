import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from fastspeech.checkpoints.files import inside, locate, read_json, read_json_if_any, replacing, write_json
from fastspeech.errors import CheckpointError

REPOSITORY = [
    "README.md",
    "config.json",
    "generation_config.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
    "onnx/model.safetensors",
    "original/config.json",
    "preprocessor_config.json",
    "pytorch_model.bin",
    "sentencepiece.bpe.model",
    "tf_model.h5",
    "tokenizer.json",
    "vocab.txt",
    "modeling_remote.py",
]


class Hub:
    """Stands in for `huggingface_hub.snapshot_download`, with its own choice of files."""

    def __init__(self, root: Path, files: list[str]) -> None:
        self.root, self.files, self.calls = root, files, []

    def __call__(self, name: str, *, allow_patterns, ignore_patterns, **kwargs) -> str:
        self.calls.append((name, kwargs))
        folder = self.root / "snapshots" / "c0ffee"
        folder.mkdir(parents=True, exist_ok=True)
        for file in filter_repo_objects(self.files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        return str(folder)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    stand_in = Hub(tmp_path, REPOSITORY)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in)
    return stand_in


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_itself(tmp_path, hub):
    assert locate(tmp_path) == tmp_path
    assert locate(str(tmp_path), weights=True) == tmp_path
    assert not hub.calls


def test_a_hub_id_brings_settings_and_vocabularies(hub):
    options = {"revision": "refs/pr/6", "force_download": True, "local_files_only": True, "token": "t"}
    folder = locate("org/model", cache_dir="here", **options)
    assert names(folder) == {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "preprocessor_config.json",
        "sentencepiece.bpe.model",
        "tokenizer.json",
        "vocab.txt",
    }
    assert hub.calls == [("org/model", options | {"cache_dir": Path("here")})]


def test_weights_are_safetensors_where_there_are_any(hub):
    found = names(locate("org/model", weights=True))
    assert {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "config.json"} <= found
    assert not {"pytorch_model.bin", "tf_model.h5", "modeling_remote.py", "onnx/model.safetensors"} & found


def test_weights_are_bin_files_where_there_are_no_safetensors(hub):
    hub.files = [file for file in REPOSITORY if not file.endswith(".safetensors")]
    assert "pytorch_model.bin" in names(locate("org/model", weights=True))


@pytest.mark.parametrize("error", [OSError("no network"), ValueError("bad id")])
def test_what_the_hub_refuses_is_named(monkeypatch, error):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=rf"org/model at revision 'v2' .*{error}"):
        locate("org/model", revision="v2")


@pytest.mark.parametrize("name", ["./missing", "/missing/folder", "a/b/c", "~/missing", "not an id", ""])
def test_what_cannot_be_a_hub_id_is_a_missing_folder(hub, name):
    with pytest.raises(CheckpointError, match="there is no folder"):
        locate(name)
    assert not hub.calls


def test_a_path_is_never_a_hub_id(hub):
    with pytest.raises(CheckpointError, match="there is no folder"):
        locate(Path("org/model"))
    assert not hub.calls


def test_a_file_is_not_a_checkpoint(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a file"):
        locate(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "..", "a\\..\\..\\x", "C:\\x", "\\\\host\\x"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        inside(tmp_path, name)


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000])
def test_what_cannot_be_a_file_name_is_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="cannot be a file name"):
        inside(tmp_path, name)


def test_links_may_stay_in_the_folder_only(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "real.json").touch()
    (tmp_path / "secret.json").touch()
    (folder / "near.json").symlink_to("real.json")
    (folder / "far.json").symlink_to("../secret.json")
    (folder / "farther").symlink_to(tmp_path)
    assert inside(folder, "near.json") == folder / "near.json"
    for name in ("far.json", "farther/secret.json"):
        with pytest.raises(CheckpointError, match="a link out of the folder"):
            inside(folder, name)


def test_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "loop.json").symlink_to("loop.json")
    with pytest.raises(CheckpointError, match=r"loop\.json"):
        read_json(tmp_path, "loop.json")


def test_snapshots_of_the_hub_cache_link_to_its_blobs(tmp_path):
    folder = tmp_path / "hub" / "models--org--model" / "snapshots" / "c0ffee"
    own, shared = folder.parents[1] / "blobs", folder.parents[2] / "blobs"
    for each in (folder, own, shared):
        each.mkdir(parents=True)
    (own / "e1").touch()
    (shared / "e2").touch()
    (tmp_path / "hub" / "secret").touch()
    (folder / "config.json").symlink_to("../../blobs/e1")
    (own / "e2").symlink_to("../../blobs/e2")
    (folder / "model.safetensors").symlink_to("../../blobs/e2")
    (folder / "tokenizer.json").symlink_to("../../../secret")
    assert inside(folder, "config.json").exists()
    assert inside(folder, "model.safetensors").exists()
    with pytest.raises(CheckpointError, match="a link out of the folder"):
        inside(folder, "tokenizer.json")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"{", "not readable JSON"),
        (b"", "not readable JSON"),
        (b"\xff\xfe{}", "not readable JSON"),
        (b"[" * 100_000, "not readable JSON"),
        (b"[1]", "a JSON list, not an object"),
    ],
)
def test_bad_json_is_named(tmp_path, content, fault):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"config\.json.*{fault}"):
        read_json(tmp_path, "config.json")
    with pytest.raises(CheckpointError, match=fault):
        read_json_if_any(tmp_path, "config.json")


def test_missing_json(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        read_json(tmp_path, "config.json")
    assert read_json_if_any(tmp_path, "config.json") == {}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path, "config.json", {"b": 1, "a": "é"})
    before = (tmp_path / "config.json").read_bytes()
    assert json.loads(before) == {"a": "é", "b": 1}
    with pytest.raises(RuntimeError), replacing(tmp_path / "config.json") as draft:
        draft.write_text("half")
        raise RuntimeError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_bytes() == before
