"""examples/fine_tune_moonshine.py at tiny sizes: the loss falls, and what it writes loads."""

import csv
import importlib
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_moonshine
import torch
import transformers

import fastspeech

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Tones of two pitches, each with its text."""
    rows = []
    for number in range(8):
        pitch, text = ((200, "▁w3"), (900, "▁w7"))[number % 2]
        samples = np.sin(2 * np.pi * pitch * np.arange(4000 + 200 * number) / 16000)
        with wave.open(str(tmp_path / f"{number}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes((8000 * samples).astype("<i2").tobytes())
        rows.append({"path": f"{number}.wav", "text": text})
    with open(tmp_path / "manifest.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "text"])
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("fine_tune_moonshine")


def test_the_loss_falls_and_the_checkpoint_loads(
    example: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin, out = tiny_moonshine.save(tmp_path / "tiny"), tmp_path / "out"
    options = {"data": data, "model": begin, "out": out, "steps": 25, "batch": 4, "rate": 0.01, "device": "cpu"}
    before, after = example.main([text for name, value in options.items() for text in (f"--{name}", str(value))])
    assert after < 0.3 * before
    told = capsys.readouterr().out
    assert f"loss before {before:.3f}, after {after:.3f}" in told
    assert "encoder" in told and "decoder" in told

    theirs = transformers.MoonshineForConditionalGeneration.from_pretrained(out).eval()
    ours = fastspeech.MoonshineForConditionalGeneration.from_pretrained(out).eval()
    batch = example.batch_of(example.recordings(data, 4), fastspeech.AutoProcessor.from_pretrained(out), 2, "cpu")
    with torch.no_grad():
        found = ours(**batch)
        torch.testing.assert_close(found.logits, theirs(**batch).logits, atol=1e-4, rtol=0)
    assert found.loss < 0.3 * before


def test_a_manifest_without_recordings_is_refused(example: Any, tmp_path: Path) -> None:
    begin = tiny_moonshine.save(tmp_path / "tiny")
    (tmp_path / "manifest.csv").write_text("path,text\n")
    with pytest.raises(SystemExit, match="names no recordings"):
        example.main(["--data", str(tmp_path), "--model", str(begin)])
