"""Kyutai STT's feature extractor and processor against transformers', and what they refuse."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_kyutai
import torch
import transformers

from fastspeech import AudioError, KyutaiSpeechToTextFeatureExtractor, KyutaiSpeechToTextProcessor

CLIPS = [np.random.default_rng(i).standard_normal(n).astype(np.float32) * 0.1 for i, n in enumerate((5000, 3333, 1))]
RELEASED = [
    {"audio_delay_seconds": 2.5, "audio_silence_prefix_seconds": 1.0},
    {"audio_delay_seconds": 0.5},
    {"padding_value": 0.5, "audio_silence_prefix_seconds": 0.33333},
]


@pytest.mark.parametrize("settings", [{}, *RELEASED])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True, "return_tensors": "pt"},
        {"padding": "longest", "return_tensors": "np"},
        {"padding": "max_length", "max_length": 6000, "return_tensors": "pt"},
    ],
)
def test_extractor(settings: dict[str, Any], options: dict[str, Any]) -> None:
    ours, theirs = (made(**settings) for made in (KyutaiSpeechToTextFeatureExtractor, theirs_class()))
    found, expected = ours(CLIPS, sampling_rate=24000, **options), theirs(CLIPS, sampling_rate=24000, **options)
    assert set(found) == set(expected) == {"input_values", "padding_mask"}
    for name in expected:
        assert len(found[name]) == len(expected[name]) == 3
        for a, b in zip(found[name], expected[name], strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            np.testing.assert_array_equal(a, b)


def theirs_class() -> type[transformers.KyutaiSpeechToTextFeatureExtractor]:
    return transformers.KyutaiSpeechToTextFeatureExtractor


@pytest.mark.parametrize("padding", [False, True])
def test_chunks(padding: bool) -> None:
    """Clips padded to whole chunks, or two of one length cut to them."""
    settings = {"chunk_length_s": 0.05, "overlap": 0.25, "audio_delay_seconds": 0.5}
    ours, theirs = (made(**settings) for made in (KyutaiSpeechToTextFeatureExtractor, theirs_class()))
    assert (ours.chunk_length, ours.chunk_stride) == (theirs.chunk_length, theirs.chunk_stride) == (1200, 900)
    clips = CLIPS if padding else [CLIPS[0], CLIPS[0][::-1].copy()]
    options: dict[str, Any] = {"padding": padding, "truncation": not padding, "sampling_rate": 24000}
    found, expected = ours(clips, **options), theirs(clips, **options)
    assert set(found) == set(expected) == ({"input_values", "padding_mask"} if padding else {"input_values"})
    np.testing.assert_array_equal(np.stack(found["input_values"]), np.stack(expected["input_values"]))
    assert np.stack(found["input_values"]).shape[2] == 36000 + (5700 if padding else 4800)


def test_the_facts_example() -> None:
    """140,520 samples for stt-2.6b-en: 248,520, which are 129 frames."""
    extractor = KyutaiSpeechToTextFeatureExtractor(**RELEASED[0])
    found = extractor(np.full(140520, 0.1, np.float32), sampling_rate=24000, return_tensors="pt")
    assert found["input_values"].shape == (1, 1, 248520) and 248520 // 1920 == 129
    mask = found["padding_mask"][0]
    assert int(mask.sum()) == 140520 and mask[24000] == 1 and mask[23999] == mask[24000 + 140520] == 0
    assert found["input_values"][0, 0, mask == 0].abs().max() == 0


def test_without_padding() -> None:
    extractor = KyutaiSpeechToTextFeatureExtractor()
    found = extractor(CLIPS, padding=False, sampling_rate=24000)
    assert list(found) == ["input_values"]
    assert [row.shape for row in found["input_values"]] == [(1, 29000), (1, 27333), (1, 24001)]
    with pytest.raises(ValueError, match="input_values does not make one tensor"):
        extractor(CLIPS, padding=False, sampling_rate=24000, return_tensors="pt")
    cut = extractor(CLIPS, padding=False, truncation=True, max_length=3000, sampling_rate=24000)
    assert [row.shape[1] - 24000 for row in cut["input_values"]] == [3000, 3000, 1]
    np.testing.assert_array_equal(cut["input_values"][0][0, :3000], CLIPS[0][:3000])


def test_kinds_of_input() -> None:
    extractor = KyutaiSpeechToTextFeatureExtractor()
    clip = CLIPS[0]
    expected = extractor(clip, sampling_rate=24000)["input_values"][0]
    kinds = (
        clip.astype(np.float64),
        clip.tolist(),
        torch.from_numpy(clip),
        [clip],
        [torch.from_numpy(clip)],
        clip[None],
    )
    for given in kinds:
        (found,) = extractor(given, sampling_rate=24000)["input_values"]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("given", "options", "fault"),
    [
        (np.zeros(0, np.float32), {}, "empty"),
        (np.full(1000, np.nan, np.float32), {}, "1000 samples are NaN"),
        ([CLIPS[0], np.full(9, np.inf, np.float32)], {}, "audio 1: 9 samples are NaN or infinite"),
        (np.zeros(1000, np.int16), {}, "int16"),
        (np.zeros((1, 2, 1000), np.float32), {}, r"shape \(2, 1000\) where one mono clip"),
        (CLIPS[0], {"sampling_rate": 16000}, "sampled at 16000 Hz where the model needs 24000 Hz"),
        (CLIPS[0], {"padding": True, "truncation": True}, "exclude each other"),
        (CLIPS[0], {"padding": "max_length"}, "needs max_length"),
        (CLIPS[0], {"padding": False, "truncation": True}, "truncation needs max_length"),
        (CLIPS[0], {"padding": "much"}, "padding must be 'longest'"),
    ],
)
def test_what_is_refused(given: Any, options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        KyutaiSpeechToTextFeatureExtractor()(given, **{"sampling_rate": 24000} | options)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [({"feature_size": 2}, "feature_size must be 1"), ({"audio_delay_seconds": -1.0}, "must not be negative")],
)
def test_settings_that_are_refused(settings: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        KyutaiSpeechToTextFeatureExtractor(**settings)


def test_the_rate_should_be_stated() -> None:
    extractor = KyutaiSpeechToTextFeatureExtractor()
    with pytest.warns(UserWarning, match="24000 Hz is assumed"):
        extractor(CLIPS[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_kyutai.processor()(CLIPS[0])
        extractor(CLIPS[0], sampling_rate=24000)
    with pytest.raises(AudioError, match="16000 Hz"):
        tiny_kyutai.processor()(CLIPS[0], sampling_rate=16000)


def test_processor(tmp_path: Path) -> None:
    ours = tiny_kyutai.processor()
    ours.save_pretrained(tmp_path)
    theirs = transformers.KyutaiSpeechToTextProcessor.from_pretrained(tmp_path)
    again = KyutaiSpeechToTextProcessor.from_pretrained(tmp_path)
    for given in (CLIPS[0], CLIPS):
        expected = theirs(audio=given)
        for found in (ours(given), again(audio=given), again(given, padding=True, return_tensors="pt")):
            assert set(found) == set(expected)
            assert all(torch.equal(found[name], expected[name]) for name in expected)
            assert all(found[name].dtype == expected[name].dtype for name in expected)
    ids = torch.tensor([[177, 3, 0, 4, 9, 3, 0, 40, 3]])
    assert again.batch_decode(ids, skip_special_tokens=True) == ["w0 w5 w36"]
    assert theirs.batch_decode(ids, skip_special_tokens=True) == ["w0 w5 w36"]
    both = ours(CLIPS[0], text="▁w0")
    assert both["input_ids"].tolist() == [[4]] and "input_values" in both
    assert set(ours(text="▁w0")) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("given", "fault", "kind"),
    [
        ({}, "give audio, text or both", ValueError),
        ({"images": CLIPS[0], "audio": CLIPS[0]}, "give the audio, once", ValueError),
        ({"audio": CLIPS[0], "videos": CLIPS[0]}, "and no videos", ValueError),
        ({"audio": CLIPS[0], "paddding": True}, "paddding", TypeError),
    ],
)
def test_what_the_processor_refuses(given: dict[str, Any], fault: str, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=fault):
        tiny_kyutai.processor()(**given)
