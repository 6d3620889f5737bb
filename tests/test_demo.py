"""The embedded demo checkpoint, through the front doors: right words for words, nothing for noise."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastspeech
from fastspeech.cli import main

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "fastspeech" / "assets"
SAMPLE = ASSETS / "sample.flac"
WORDS = (ASSETS / "sample.txt").read_text().strip()
RECORDINGS = ROOT / "../shared/data/voice_commands"

needs_recordings = pytest.mark.skipif(
    not RECORDINGS.is_dir(), reason="the recordings of ../shared/data/voice_commands are not here"
)


@pytest.fixture(scope="module")
def recognise():
    return fastspeech.pipeline("automatic-speech-recognition", device="cpu")


@pytest.fixture
def examples(monkeypatch):
    """The modules that the training script is made of."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return SimpleNamespace(
        **{
            name: importlib.import_module(f"voice_commands.{name}")
            for name in ("clips", "measure", "model", "training")
        }
    )


def test_the_sample_through_the_pipeline(recognise):
    assert recognise(SAMPLE)["text"] == WORDS


def test_the_sample_through_the_command(capsys):
    assert main(["transcribe", str(SAMPLE), "--device", "cpu"]) == 0
    assert capsys.readouterr().out.strip() == WORDS


def test_the_sample_without_punctuation_and_in_a_batch(recognise):
    """Each row of a batch is as if alone, and the other prompt that was trained gives the same words."""
    quiet = fastspeech.load_audio(SAMPLE) * 0.05
    results = recognise([SAMPLE, np.zeros(8000, np.float32), quiet], punctuation=False)
    assert [r["text"] for r in results] == [WORDS, "", WORDS]


def test_the_sample_many_times_over(recognise):
    """A recording of 38 s is cut at quiet places, and no word is lost or said twice there."""
    assert recognise(np.tile(fastspeech.load_audio(SAMPLE), 10))["text"].split() == WORDS.split() * 10


@pytest.mark.parametrize("seconds", [0.1, 1, 3, 12])
def test_silence_is_no_word(recognise, seconds):
    assert recognise(np.zeros(int(16000 * seconds), np.float32))["text"] == ""


@pytest.mark.parametrize("level", [0.003, 0.05, 0.5])
def test_noise_is_no_word(recognise, level):
    draw = np.random.default_rng(0)
    white = [draw.standard_normal(16000 * seconds).astype(np.float32) for seconds in (1, 2, 4)]
    brown = [np.cumsum(sound) / np.abs(np.cumsum(sound)).max() * 2 for sound in white]
    assert [r["text"] for r in recognise([sound * level for sound in white + brown])] == [""] * 6


def test_the_folder_is_small():
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 3_000_000
    assert SAMPLE.stat().st_size < 100_000


@needs_recordings
def test_whole_speakers_are_kept_out(examples):
    to_train, kept_out = examples.clips.split_speakers(examples.clips.read_manifest(RECORDINGS))
    speakers = {row["speaker"] for row in kept_out}
    assert len(speakers) >= 30
    assert speakers.isdisjoint(row["speaker"] for row in to_train)
    assert {row["word"] for row in kept_out} == set(examples.clips.WORDS)


@needs_recordings
def test_error_rate_on_speakers_kept_out(examples, recognise):
    """One sequence of each of the speakers, and a second of some: 40."""
    kept_out = kept_out_clips(examples)
    tests = examples.measure.sequences(kept_out, 40, (1, 5))
    errors = examples.measure.Errors()
    for test, result in zip(tests, recognise([t.samples for t in tests]), strict=True):
        errors.add(list(test.words), result["text"].split())
    assert errors.words > 100
    assert errors.rate <= 0.12


@pytest.mark.slow
@needs_recordings
def test_the_card_says_what_is_measured(examples):
    noises = examples.clips.read_noise(RECORDINGS)[1]
    report = examples.measure.report(ASSETS, kept_out_clips(examples), noises)
    assert report["speakers"] >= 30
    assert report["all"]["sequences"] >= 500
    assert report["all"]["word error rate"] <= 0.12
    assert report["background kept out"]["with words"] == 0
    card = (ASSETS / "README.md").read_text()
    claimed = re.search(r"word error rate of \*\*([\d.]+)\*\*", card)
    assert claimed is not None
    assert float(claimed.group(1)) == pytest.approx(report["all"]["word error rate"], abs=0.002)


@pytest.mark.slow
@needs_recordings
def test_the_training_script_runs(tmp_path):
    """Two steps, and a checkpoint that the command can use."""
    script = [sys.executable, str(ROOT / "examples" / "train_voice_commands.py"), "--data", str(RECORDINGS)]
    subprocess.run([*script, "--out", str(tmp_path), "--steps", "2", "--synthetic", "3"], check=True)
    assert main(["transcribe", str(SAMPLE), "--model", str(tmp_path), "--device", "cpu"]) == 0


def kept_out_clips(examples):
    rows = examples.clips.split_speakers(examples.clips.read_manifest(RECORDINGS))[1]
    return examples.clips.read_clips(RECORDINGS, rows)


def test_errors_are_counted(examples):
    errors = examples.measure.Errors()
    errors.add(["yes", "no", "up"], ["yes", "up", "up", "down"])
    errors.add(["one", "two"], ["two"])
    errors.add([], ["go"])
    assert errors.words == 5
    assert errors.substituted == {("no", "up"): 1}
    assert errors.inserted == {"down": 1, "go": 1}
    assert errors.deleted == {"one": 1}
    assert errors.rate == pytest.approx(4 / 5)


def test_renewed_statistics_are_those_of_the_batches(examples):
    """Twice the same batch: the plain average of its own statistics, whatever they were before."""
    torch.manual_seed(0)
    model = examples.model.build_model()
    features = torch.randn(4, 80, 80)
    batch = {
        "input_features": features,
        "attention_mask": torch.ones(4, 80, dtype=torch.bool),
        "decoder_input_ids": torch.tensor([examples.model.prompt(True)] * 4),
        "words": [],
    }
    norm = model.get_encoder().layers[0].conv.norm
    seen = []
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    examples.training.renew_statistics(model, iter([dict(batch), dict(batch)]), 2)
    assert len(seen) == 2
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2)))
    torch.testing.assert_close(norm.running_var, seen[0].transpose(0, 1).flatten(1).var(1))
    assert not any(module.training for module in model.modules())
