"""How processors are saved, loaded and uploaded."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import tiny_moonshine
import transformers

from fastspeech import CheckpointError, Wav2Vec2Processor

FEATURES, PROCESSOR = "preprocessor_config.json", "processor_config.json"


def test_either_form_is_read_here_and_there(tmp_path: Path) -> None:
    """The folder is written over again, from one form to the other."""
    processor = tiny_moonshine.processor()
    expected = processor.feature_extractor.to_dict()
    for legacy in (True, False, True):
        processor.save_pretrained(tmp_path, legacy_serialization=legacy)
        assert (tmp_path / FEATURES).exists() == legacy
        assert ("feature_extractor" in json.loads((tmp_path / PROCESSOR).read_text())) != legacy
        assert Wav2Vec2Processor.from_pretrained(tmp_path).feature_extractor.to_dict() == expected
        theirs = transformers.AutoProcessor.from_pretrained(tmp_path)
        assert type(theirs) is transformers.Wav2Vec2Processor and not theirs.feature_extractor.do_normalize


def test_arguments_by_position_and_by_name(tmp_path: Path) -> None:
    tiny_moonshine.processor().save_pretrained(save_directory=tmp_path)
    found = Wav2Vec2Processor.from_pretrained(tmp_path, None, False, True, None, "main", padding_value=0.5)
    assert found.feature_extractor.padding_value == 0.5
    assert Wav2Vec2Processor.from_pretrained(pretrained_model_name_or_path=tmp_path)
    with pytest.raises(CheckpointError):
        Wav2Vec2Processor.from_pretrained("no/such-model", tmp_path, False, True)


class Hub:
    """Stands in for `huggingface_hub.HfApi`, and writes down what it is asked for."""

    calls: list[tuple[str, dict[str, Any]]]

    def __init__(self, token: Any = None) -> None:
        Hub.calls = [("token", {"token": token})]

    def create_repo(self, repo_id: str, **options: Any) -> SimpleNamespace:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def create_branch(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_branch", {"repo_id": repo_id, **options}))

    def upload_folder(self, folder_path: Path, **options: Any) -> None:
        names = {path.name for path in folder_path.iterdir()}
        self.calls.append(("upload_folder", {"names": names, **options}))


def test_uploading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but what is saved leaves the machine."""
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    folder = tmp_path / "ears"
    folder.mkdir()
    (folder / "private.txt").write_text("of nobody else")
    processor = tiny_moonshine.processor()
    processor.save_pretrained(folder, push_to_hub=True, token="t", private=True)
    said = {"create_pr": False, "commit_message": None, "commit_description": None}
    names = {FEATURES, PROCESSOR, "tokenizer.json", "tokenizer_config.json"}
    assert (folder / FEATURES).exists()
    assert Hub.calls == [
        ("token", {"token": "t"}),
        ("create_repo", {"repo_id": "ears", "private": True, "exist_ok": True}),
        ("upload_folder", {"names": names, "repo_id": "me/ears", "revision": None, **said}),
    ]
    options = {"repo_id": "mouth", "revision": "try", "create_pr": True, "commit_message": "new"}
    processor.save_pretrained(folder, push_to_hub=True, legacy_serialization=False, **options)
    assert Hub.calls[1:] == [
        ("create_repo", {"repo_id": "mouth", "private": None, "exist_ok": True}),
        ("create_branch", {"repo_id": "me/mouth", "branch": "try", "exist_ok": True}),
        (
            "upload_folder",
            {
                "names": names - {FEATURES},
                "repo_id": "me/mouth",
                "revision": "try",
                "create_pr": True,
                "commit_message": "new",
                "commit_description": None,
            },
        ),
    ]
    with pytest.raises(TypeError, match="repo_id: only with push_to_hub=True"):
        processor.save_pretrained(folder, repo_id="mouth")
    with pytest.raises(TypeError, match="repository"):
        processor.save_pretrained(folder, push_to_hub=True, repository="mouth")
