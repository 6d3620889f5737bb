"""Speech2Text's features against transformers' (its NumPy path, as torchaudio is not installed)."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers.models.speech_to_text import feature_extraction_speech_to_text as reference

from fastspeech import AudioError, Speech2TextFeatureExtractor

RATE = 16000


@pytest.fixture(autouse=True)
def numpy_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "is_speech_available", lambda: False)


def clip(seconds: float, seed: int = 0) -> np.ndarray:
    """Tones that come and go over noise."""
    noise = np.random.default_rng(seed)
    t = np.arange(int(seconds * RATE)) / RATE
    tones = sum(np.sin(2 * np.pi * f * t) * np.sin(3 * f * t / 200) for f in (210.0, 640.0 + 50 * seed, 2300.0))
    return (0.1 * tones + 0.05 * noise.standard_normal(len(t))).astype(np.float32)


def agree(ours: Any, theirs: Any) -> None:
    for name in ("input_features", "attention_mask"):
        assert len(ours[name]) == len(theirs[name])
        for mine, other in zip(ours[name], theirs[name], strict=True):
            mine, other = np.asarray(mine), np.asarray(other)
            assert mine.dtype == other.dtype
            np.testing.assert_allclose(mine, other, atol=5e-4, rtol=0)


@pytest.mark.parametrize("bins", [80, 24])
def test_a_clip_and_a_batch(bins: int) -> None:
    settings = {"feature_size": bins, "num_mel_bins": bins}
    ours = Speech2TextFeatureExtractor(**settings)
    theirs = transformers.Speech2TextFeatureExtractor(**settings)
    for audio in (clip(1.3), [clip(0.5), clip(1.1, 1), clip(0.8, 2)]):
        options = {"sampling_rate": RATE, "padding": True, "return_tensors": "pt"}
        agree(ours(audio, **options), theirs(audio, **options))
    found = ours(clip(10), sampling_rate=RATE)["input_features"]
    assert found.shape == (1, 998, bins) and found.dtype == torch.float32


@pytest.mark.parametrize("means, variances, normalize", [*product((True, False), (True, False), (True,)), (1, 1, 0)])
def test_normalisation(means: bool, variances: bool, normalize: bool) -> None:
    settings = {
        "do_ceptral_normalize": bool(normalize),
        "normalize_means": bool(means),
        "normalize_vars": bool(variances),
        "padding_value": -3.0,
    }
    ours, theirs = Speech2TextFeatureExtractor(**settings), transformers.Speech2TextFeatureExtractor(**settings)
    batch, options = [clip(0.5), clip(0.7, 1)], {"sampling_rate": RATE, "padding": True}
    agree(ours(batch, **options), theirs(batch, **options))


def test_padding_value_of_a_call() -> None:
    """What the page says of it; transformers ignores it."""
    batch, options = [clip(0.5), clip(0.7, 1)], {"sampling_rate": RATE, "padding": True}
    found = Speech2TextFeatureExtractor(padding_value=2.0)(batch, **options, padding_value=-3.0)
    expected = Speech2TextFeatureExtractor(padding_value=-3.0)(batch, **options)
    assert torch.equal(found["input_features"], expected["input_features"])
    assert (found["input_features"][0, -1] == -3.0).all()


def test_padding_and_truncation() -> None:
    ours, theirs = Speech2TextFeatureExtractor(), transformers.Speech2TextFeatureExtractor()
    batch = [clip(0.5), clip(0.7, 1)]
    for options in (
        {"padding": False},
        {"padding": "max_length", "max_length": 90},
        {"padding": True, "pad_to_multiple_of": 16},
        {"padding": True, "truncation": True, "max_length": 55},
        {"padding": "max_length", "truncation": True, "max_length": 30, "pad_to_multiple_of": 8},
        {"padding": False, "truncation": True, "max_length": 20},
        {"padding": True, "return_tensors": "np"},
    ):
        agree(ours(batch, sampling_rate=RATE, **options), theirs(batch, sampling_rate=RATE, **options))
    without = ours(batch, sampling_rate=RATE, padding=True, return_attention_mask=False)
    assert list(without) == ["input_features"]
    for options, fault in (
        ({"padding": "widest"}, "'widest'"),
        ({"padding": "max_length"}, "needs max_length"),
        ({"truncation": True}, "truncation needs a max_length"),
        ({"return_tensors": "pt"}, "padding=True makes rows equal"),
    ):
        with pytest.raises(ValueError, match=fault):
            ours(batch, sampling_rate=RATE, **options)


def test_every_form_of_a_clip_gives_the_same() -> None:
    ours, wave = Speech2TextFeatureExtractor(), clip(0.3)
    expected = ours(wave, sampling_rate=RATE)["input_features"]
    forms: list[Any] = [torch.from_numpy(wave), wave.tolist(), wave.astype(np.float64), [wave], [wave.tolist()]]
    for form in [*forms, np.stack([wave, wave]), [torch.from_numpy(wave)] * 2]:
        found = ours(form, sampling_rate=RATE)["input_features"]
        assert all(torch.equal(row, expected[0]) for row in found)
    assert np.array_equal(wave, clip(0.3)), "the caller's samples were written to"


def test_rows_do_not_meet() -> None:
    ours, batch = Speech2TextFeatureExtractor(), [clip(0.5), clip(1.5, 1), clip(0.9, 2)]
    together = ours(batch, sampling_rate=RATE, padding=True)["input_features"]
    for row, samples in enumerate(batch):
        alone = ours(samples, sampling_rate=RATE)["input_features"][0]
        torch.testing.assert_close(together[row, : len(alone)], alone, atol=2e-5, rtol=2e-5)
        assert not together[row, len(alone) :].any()


@pytest.mark.parametrize("means", [True, False])
def test_silence_is_finite(means: bool) -> None:
    """transformers divides by a deviation of 0."""
    silence = np.zeros(RATE, np.float32)
    ours = Speech2TextFeatureExtractor(normalize_means=means)
    found = ours([silence, clip(0.5)], sampling_rate=RATE, padding=True)["input_features"]
    assert found.isfinite().all()
    if means:
        assert found[0].abs().max() < 0.2
    with np.errstate(all="ignore"):
        theirs = transformers.Speech2TextFeatureExtractor()(silence, sampling_rate=RATE)["input_features"][0]
    assert not np.isfinite(theirs).all()


def test_dither() -> None:
    plain = Speech2TextFeatureExtractor(do_ceptral_normalize=False)
    noisy = Speech2TextFeatureExtractor(do_ceptral_normalize=False, dither=1.0)
    wave = clip(1.0)
    torch.manual_seed(0)
    difference = noisy(wave, sampling_rate=RATE)["input_features"] - plain(wave, sampling_rate=RATE)["input_features"]
    assert 1e-6 < difference.abs().mean() <= 1e-3 and difference.abs().max() <= 0.1
    # Of silence nothing but the noise is left, whose level is that of transformers.
    silence = np.zeros(4 * RATE, np.float32)
    np.random.seed(0)
    theirs = transformers.Speech2TextFeatureExtractor(do_ceptral_normalize=False, dither=1.0)
    expected = theirs(silence, sampling_rate=RATE)["input_features"][0].mean()
    assert noisy(silence, sampling_rate=RATE)["input_features"].mean().item() == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    "samples, fault",
    [
        ([], "empty"),
        (np.zeros(399, np.float32), "needs at least 400"),
        (np.array([0.1, np.nan] * 300, np.float32), "NaN or infinite"),
        (np.zeros(500, np.int16), "int16 samples"),
        (np.zeros((2, 2, 500), np.float32), "one mono clip"),
    ],
)
def test_bad_samples_are_named(samples: Any, fault: str) -> None:
    with pytest.raises(AudioError, match=f"audio 0.*{fault}"):
        Speech2TextFeatureExtractor()(samples, sampling_rate=RATE)


def test_rates() -> None:
    with pytest.raises(AudioError, match="8000 Hz"):
        Speech2TextFeatureExtractor()(clip(0.3), sampling_rate=8000)
    with pytest.warns(UserWarning, match="16000 Hz is assumed"):
        Speech2TextFeatureExtractor()(clip(0.3))


def test_settings_are_those_of_transformers(tmp_path: Any) -> None:
    theirs = transformers.Speech2TextFeatureExtractor(num_mel_bins=24, feature_size=24, normalize_vars=False)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = Speech2TextFeatureExtractor.from_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    again = transformers.Speech2TextFeatureExtractor.from_pretrained(tmp_path / "ours")
    wave, kwargs = clip(0.4), {"sampling_rate": RATE, "return_tensors": "pt"}
    agree(ours(wave, **kwargs), theirs(wave, **kwargs))
    agree(ours(wave, **kwargs), again(wave, **kwargs))
    with pytest.raises(ValueError, match="'left'"):
        Speech2TextFeatureExtractor(padding_side="left")
