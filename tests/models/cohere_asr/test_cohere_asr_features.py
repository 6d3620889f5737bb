"""CohereAsr's features against transformers, and what is refused."""

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from fastspeech import AudioError, CohereAsrFeatureExtractor

Clip = NDArray[np.float32]


def clip(seconds: float, seed: int = 0) -> Clip:
    """A gliding tone in noise."""
    count = round(seconds * 16000)
    t = np.arange(count) / 16000
    noise = np.random.default_rng(seed).standard_normal(count)
    return (0.3 * np.sin(2 * np.pi * 220 * t * (1 + 0.1 * np.sin(t))) + 0.02 * noise).astype(np.float32)


def agree(found: Any, expected: Any) -> None:
    assert list(found) == list(expected) == ["input_features", "attention_mask", "audio_chunk_index"]
    assert found["audio_chunk_index"] == expected["audio_chunk_index"]
    for name in ("input_features", "attention_mask"):
        assert type(found[name]) is type(expected[name]) and found[name].dtype == expected[name].dtype
    assert np.array_equal(np.asarray(found["attention_mask"]), np.asarray(expected["attention_mask"]))
    np.testing.assert_allclose(found["input_features"], expected["input_features"], atol=1e-4, rtol=1e-4)
    assert not np.asarray(found["input_features"])[~np.asarray(found["attention_mask"])].any()


ODD_SETTINGS = {
    "released": {},
    "odd": {"feature_size": 23, "hop_length": 100, "n_fft": 256, "win_length": 201, "preemphasis": 0.5},
    "no pre-emphasis": {"preemphasis": None, "feature_size": 80},
    "short chunks": {"max_audio_clip_s": 1.1, "overlap_chunk_second": 0.3, "min_energy_window_samples": 333},
}


@pytest.mark.parametrize("dither", [0.0, 1e-5])
@pytest.mark.parametrize("options", ODD_SETTINGS.values(), ids=ODD_SETTINGS)
def test_features(options: dict[str, Any], dither: float) -> None:
    theirs = transformers.CohereAsrFeatureExtractor(dither=dither, **options)
    ours = CohereAsrFeatureExtractor(dither=dither, **options)
    for batch in ([clip(1.3)], [clip(3.07), clip(0.5, 1), clip(2.2, 2)], [clip(0.0201)]):
        agree(*(extract(batch, sampling_rate=16000, return_tensors="pt") for extract in (ours, theirs)))


@pytest.mark.parametrize("dither", [0.0, 1e-5])
def test_a_recording_of_36_seconds_is_cut(dither: float) -> None:
    theirs, ours = (cls(dither=dither) for cls in (transformers.CohereAsrFeatureExtractor, CohereAsrFeatureExtractor))
    batch = [clip(36.3), clip(1, 1), clip(31, 2)]
    found = ours(batch, sampling_rate=16000)
    agree(found, theirs(batch, sampling_rate=16000))
    assert found["audio_chunk_index"] == [(0, 0), (0, 1), (1, None), (2, 0)]


def test_known_values() -> None:
    """Of transformers (facts §1.1): a sum of two tones, one second."""
    t = np.arange(16000) / 16000
    tones = (0.5 * np.sin(2 * np.pi * 440 * t) + 0.25 * np.sin(2 * np.pi * 1234.5 * t)).astype(np.float32)
    for dither, first, last in (
        (0.0, [7.454933, 7.509582, 7.543934, 8.323734], [0.386001, 0.382092, 0.377778, 0.374045]),
        (1e-5, [7.455559, 7.509640, 7.543734, 8.324274], [0.368952, 0.377134, 0.376006, 0.341609]),
    ):
        found = CohereAsrFeatureExtractor(dither=dither)(tones, sampling_rate=16000)["input_features"][0]
        np.testing.assert_allclose(found[0, :4], first, atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(found[99, 124:], last, atol=1e-4, rtol=1e-4)
        assert found.shape == (101, 128) and not found[100].any()


def test_every_form_of_a_clip_gives_the_same() -> None:
    ours = CohereAsrFeatureExtractor(feature_size=16)
    wave = clip(0.3)
    expected = ours(wave, sampling_rate=16000)["input_features"]
    pairs: list[Any] = [torch.from_numpy(wave), wave.tolist(), wave.astype(np.float64), [wave], [wave.tolist()]]
    pairs += [np.stack([wave, wave]), torch.from_numpy(np.stack([wave, wave])), (wave, wave), [wave.tolist()] * 2]
    for form in pairs:
        found = ours(form, sampling_rate=16000)["input_features"]
        assert all(torch.equal(row, expected[0]) for row in found)
    reversed_view = wave[::-1].copy()[::-1]
    assert torch.equal(ours(reversed_view, sampling_rate=16000)["input_features"], expected)
    assert np.array_equal(wave, clip(0.3)), "the caller's samples were written to"


def test_padding_options() -> None:
    theirs, ours = transformers.CohereAsrFeatureExtractor(), CohereAsrFeatureExtractor()
    batch = [clip(0.5), clip(0.7, 1)]
    for options in (
        {"padding": "max_length", "max_length": 16000},
        {"pad_to_multiple_of": 1000},
        {"padding": True, "return_tensors": "np"},
    ):
        agree(ours(batch, sampling_rate=16000, **options), theirs(batch, sampling_rate=16000, **options))
    same = [clip(0.5), clip(0.5, 1)]
    agree(ours(same, sampling_rate=16000, padding=False), theirs(same, sampling_rate=16000, padding=False))
    with pytest.raises(ValueError, match="padding='longest'"):
        ours(batch, sampling_rate=16000, padding=False)
    with pytest.raises(ValueError, match="11200 samples or more"):
        ours(batch, sampling_rate=16000, padding="max_length", max_length=9000)
    with pytest.raises(ValueError, match="'widest'"):
        ours(batch, sampling_rate=16000, padding="widest")


def test_padding_value() -> None:
    """What the page says of it; transformers ignores it."""
    ours, batch = CohereAsrFeatureExtractor(), [clip(0.5), clip(1.1, 1)]
    plain = ours(batch, sampling_rate=16000)
    filled = ours(batch, sampling_rate=16000, padding_value=-3.0)["input_features"]
    mask = plain["attention_mask"][..., None]
    assert torch.equal(filled, torch.where(mask, plain["input_features"], -3.0))


def test_truncation_counts_what_it_leaves() -> None:
    """transformers keeps the old count there, and so divides by the wrong one."""
    ours = CohereAsrFeatureExtractor()
    cut = ours([clip(0.5), clip(0.2, 1)], sampling_rate=16000, truncation=True, max_length=4800)
    whole = ours([clip(0.5)[:4800], clip(0.2, 1)], sampling_rate=16000)
    assert torch.equal(cut["input_features"], whole["input_features"])
    assert cut["attention_mask"].sum(1).tolist() == [30, 20]


def test_rows_do_not_meet() -> None:
    ours = CohereAsrFeatureExtractor()
    batch = [clip(0.5), clip(1.5, 1), clip(0.9, 2)]
    together = ours(batch, sampling_rate=16000)["input_features"]
    for row, samples in enumerate(batch):
        alone = ours(samples, sampling_rate=16000)["input_features"][0]
        torch.testing.assert_close(together[row, : len(alone) - 1], alone[:-1], atol=2e-5, rtol=2e-5)


def test_silence_is_finite() -> None:
    for dither in (0.0, 1e-5):
        found = CohereAsrFeatureExtractor(dither=dither)(np.zeros(16000, np.float32), sampling_rate=16000)
        assert found["input_features"].isfinite().all()


def test_the_shortest_clip() -> None:
    ours = CohereAsrFeatureExtractor()
    found = ours(clip(0.02), sampling_rate=16000)
    assert found["attention_mask"].tolist() == [[True, True, False]] and found["input_features"].isfinite().all()


@pytest.mark.parametrize(
    "samples, fault",
    [
        ([], "empty"),
        (np.zeros(0, np.float32), "empty"),
        (clip(0.02)[:319], "319 samples are too short; the model needs at least 320"),
        (np.full(400, np.nan, np.float32), "400 samples are NaN or infinite"),
        (np.where(np.arange(400) == 7, np.inf, 0.1), "the first at index 7"),
        (np.zeros(400, np.int16), r"int16 samples .* 32768"),
        ([1] * 400, "samples where floats"),
        ([np.zeros((2, 400), np.float32)], r"\(2, 400\) where one mono clip"),
        (np.zeros((1, 2, 400), np.float32), r"\(2, 400\) where one mono clip"),
        (["path.wav"], "not an array of samples"),
    ],
)
def test_bad_samples(samples: Any, fault: str) -> None:
    with pytest.raises(AudioError, match=fault):
        CohereAsrFeatureExtractor()(samples, sampling_rate=16000)


def test_the_bad_clip_of_a_batch_is_named() -> None:
    with pytest.raises(AudioError, match="audio 1: empty"):
        CohereAsrFeatureExtractor()([clip(0.1), np.zeros(0, np.float32)], sampling_rate=16000)


def test_sampling_rate() -> None:
    with pytest.raises(AudioError, match="8000 Hz where the model needs 16000 Hz"):
        CohereAsrFeatureExtractor()(clip(0.1), sampling_rate=8000)
    with pytest.warns(UserWarning, match="16000 Hz is assumed"):
        CohereAsrFeatureExtractor()(clip(0.1))


def test_mel_banks() -> None:
    ours = CohereAsrFeatureExtractor()
    assert torch.equal(ours.mel_filters, transformers.CohereAsrFeatureExtractor().mel_filters)
    assert "mel_filters" not in ours.to_dict()
    bank = torch.rand(128, 257)
    assert torch.equal(CohereAsrFeatureExtractor(mel_filters=bank).mel_filters, bank)
    with pytest.raises(ValueError, match=r"must have shape \(128, 257\), got \(257, 128\)"):
        CohereAsrFeatureExtractor(mel_filters=bank.T)
    with pytest.raises(ValueError, match="'htk'"):
        CohereAsrFeatureExtractor(mel_filters="htk")
