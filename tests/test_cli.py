"""The command: what goes to which stream and file, and the exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_cohere
import torch
from media import encode, example, save, sine

import fastspeech.pipelines
from fastspeech.cli import main, output_paths
from fastspeech.pipelines import AutomaticSpeechRecognitionPipeline

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """Puts the stand-in in the model's place; holds what the pipeline was asked for."""
    asked: dict[str, object] = {}

    def pipeline(**options: object) -> AutomaticSpeechRecognitionPipeline:
        asked.update(options)
        clock = asked["clock"] = tiny_cohere.Clock()
        return AutomaticSpeechRecognitionPipeline(clock, tiny_cohere.processor(), batch_size=8)

    monkeypatch.setattr(fastspeech.pipelines, "pipeline", pipeline)
    return asked


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A good recording, a broken one and another good one, in the current folder."""
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "one.flac", example("flac", 1))
    save(tmp_path / "broken.wav", example("wav")[:5000])
    save(tmp_path / "two.mp3", example("mp3", 2))
    return ["one.flac", "broken.wav", "two.mp3"]


def test_one_file_to_standard_output(asked: dict[str, object], three: list[str], capsys: Captured) -> None:
    assert main(["transcribe", "two.mp3"]) == 0
    assert capsys.readouterr().out == "2s 2s\n"
    assert asked["model"] is None and asked["device"] is None and asked["dtype"] is None


def test_a_bad_file_is_a_line_and_the_others_finish(
    asked: dict[str, object], three: list[str], capsys: Captured
) -> None:
    assert main(["transcribe", *three, "nowhere.wav"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "one.flac: 1s\ntwo.mp3: 2s 2s\n"
    lines = [line for line in captured.err.splitlines() if line.startswith("fastspeech: ")]
    assert len(lines) == 2
    assert lines[0].startswith("fastspeech: broken.wav: truncated")
    assert lines[1].startswith("fastspeech: nowhere.wav: cannot be opened: No such file")


@pytest.mark.parametrize(
    ("format_", "begins"),
    [("txt", "2s 2s\n"), ("json", '{\n  "file"'), ("srt", "1\n00:00:00,000 --> 00:00:02,0"), ("vtt", "WEBVTT\n\n00")],
)
def test_files_in_a_folder(
    asked: dict[str, object], three: list[str], capsys: Captured, format_: str, begins: str
) -> None:
    folder = Path("new") / "folder"
    assert main(["transcribe", *three, "--format", format_, "--output-dir", str(folder)]) == 1
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in folder.iterdir()) == [f"one.{format_}", f"two.{format_}"]
    assert (folder / f"two.{format_}").read_text().startswith(begins)


def test_json_on_standard_output_is_a_line_for_each_file(
    asked: dict[str, object], three: list[str], capsys: Captured
) -> None:
    assert main(["transcribe", "one.flac", "two.mp3", "--format", "json", "--language", "de"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(record["file"], record["text"], record["language"]) for record in records] == [
        ("one.flac", "1s", "de"),
        ("two.mp3", "2s 2s", "de"),
    ]


def test_files_of_one_stem_do_not_overwrite_each_other(
    asked: dict[str, object], tmp_path: Path, capsys: Captured
) -> None:
    files = []
    for second, name in enumerate(["a.wav", "b/a.wav", "c/A.WAV", "a-2.wav"], 1):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        files.append(str(save(tmp_path / name, encode(sine(440, second, 16000)[None], 16000))))
    assert main(["transcribe", *files, "--output-dir", str(tmp_path / "out")]) == 0
    texts = {path.name: path.read_text().split()[0] for path in (tmp_path / "out").iterdir()}
    assert texts == {"a.txt": "1s", "a-2.txt": "2s", "A-3.txt": "3s", "a-2-2.txt": "4s"}


def test_names_of_urls() -> None:
    urls = ["https://example.org/talks/one.mp3?token=a/b.wav", "http://example.org/", "https://example.org/one.ogg#x"]
    assert [path.name for path in output_paths(urls, Path("out"), "srt")] == ["one.srt", "audio.srt", "one-2.srt"]


def test_a_file_that_cannot_be_written(asked: dict[str, object], three: list[str], capsys: Captured) -> None:
    Path("out/one.txt").mkdir(parents=True)
    assert main(["transcribe", "one.flac", "two.mp3", "--output-dir", "out"]) == 1
    assert "fastspeech: one.flac: out/one.txt cannot be written: Is a directory" in capsys.readouterr().err
    assert Path("out/two.txt").read_text() == "2s 2s\n"
    assert main(["transcribe", "one.flac", "--output-dir", "one.flac"]) == 1
    assert "File exists" in capsys.readouterr().err


def test_what_is_asked_of_the_model(asked: dict[str, object], three: list[str], capsys: Captured) -> None:
    options = ["--model", "folder", "--device", "cpu", "--dtype", "bfloat16", "--batch-size", "2", "--language", "de"]
    options += ["--no-punctuation", "--max-new-tokens", "1"]
    assert main(["transcribe", "two.mp3", *options]) == 0
    clock = asked.pop("clock")
    assert asked == {"model": "folder", "device": torch.device("cpu"), "dtype": "bfloat16", "batch_size": 2}
    assert isinstance(clock, tiny_cohere.Clock)
    prompt = tiny_cohere.processor().get_decoder_prompt_ids("de", punctuation=False)
    assert clock.calls == [{"prompt": prompt, "max_new_tokens": 1}]
    captured = capsys.readouterr()
    assert captured.out == "2s\n"
    assert "fastspeech: two.mp3: cut by the limit of new tokens, words are missing" in captured.err


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["transcribe"], "the following arguments are required: FILE"),
        (["transcribe", "a", "--format", "docx"], "invalid choice: 'docx'"),
        (["transcribe", "a", "--batch-size", "0"], "--batch-size: invalid"),
        (["transcribe", "a", "--max-new-tokens", "x"], "--max-new-tokens: invalid"),
        (["transcribe", "a", "--device", "toaster"], "'toaster' is no device"),
        (["transcribe", "a", "--device", "cuda:99"], "there is no cuda:99 here"),
        (["transcribe", "a", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["transcribe", "a", "b", "--format", "srt"], "several files as srt need --output-dir"),
    ],
)
def test_wrong_arguments(arguments: list[str], fault: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert fault in capsys.readouterr().err


def test_an_unknown_language(asked: dict[str, object], three: list[str], capsys: Captured) -> None:
    assert main(["transcribe", "one.flac", "--language", "xx"]) == 1
    assert "fastspeech: Unsupported language: 'xx'" in capsys.readouterr().err


@pytest.mark.parametrize(("model", "fault"), [("nowhere/at/all", "there is no folder"), (".", "has no config.json")])
def test_a_checkpoint_that_is_none(three: list[str], capsys: Captured, model: str, fault: str) -> None:
    assert main(["transcribe", "one.flac", "--model", model]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and fault in captured.err and "Traceback" not in captured.err


def test_help_suffices(capsys: Captured) -> None:
    for command, words in {
        "transcribe": ["--model", "--language", "--no-punctuation", "--format", "--output-dir", "--device", "--dtype"],
        "doctor": ["--json"],
    }.items():
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0
        text = capsys.readouterr().out
        assert all(word in text for word in words)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert {"transcribe", "doctor"} <= set(capsys.readouterr().out.split())


def test_the_module_is_the_command(tmp_path: Path) -> None:
    """In a process of its own, with a real model: text on one stream, the bar on neither where it is no terminal."""
    folder = tiny_cohere.save(tmp_path / "model")
    file = save(tmp_path / "a.flac", example("flac"))
    command = [sys.executable, "-m", "fastspeech", "transcribe", str(file), "--model", str(folder)]
    done = subprocess.run(
        [*command, "--max-new-tokens", "4"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0
    assert len(done.stdout.split()) == 4
    (complaint,) = done.stderr.splitlines()
    assert complaint.startswith(f"fastspeech: {file}: cut by the limit of new tokens, words are missing")
