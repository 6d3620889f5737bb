"""Moonshine's feature extractor and processor against transformers' Wav2Vec2 ones, and what they refuse."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from moonshine_pair import backend

from fastspeech import AudioError, Tokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2Processor

CLIPS = [np.random.default_rng(i).standard_normal(n).astype(np.float32) * 0.1 for i, n in enumerate((2000, 1500, 895))]


@pytest.mark.parametrize("settings", [{}, {"do_normalize": False, "return_attention_mask": True}])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": True},
        {"padding": "longest", "pad_to_multiple_of": 384},
        {"padding": "max_length", "max_length": 2500},
        {"padding": True, "truncation": True, "max_length": 1200},
        {"padding": "longest", "return_attention_mask": True},
    ],
)
def test_extractor(settings: dict[str, Any], options: dict[str, Any]) -> None:
    ours, theirs = Wav2Vec2FeatureExtractor(**settings), transformers.Wav2Vec2FeatureExtractor(**settings)
    tensors = "pt" if options else None
    if options and ours.do_normalize:
        options = options | {"return_attention_mask": True}
    found = ours(CLIPS, sampling_rate=16000, return_tensors=tensors, **options)
    expected = theirs(CLIPS, sampling_rate=16000, return_tensors=tensors, **options)
    assert set(found) == set(expected)
    for name in expected:
        assert len(found[name]) == len(expected[name]) == 3
        for a, b in zip(found[name], expected[name], strict=True):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, atol=1e-6 if ours.do_normalize else 0)


def test_kinds_of_input() -> None:
    extractor = Wav2Vec2FeatureExtractor(do_normalize=False)
    clip = CLIPS[0]
    for given in (clip, clip.astype(np.float64), clip.tolist(), torch.from_numpy(clip), [clip], clip[None]):
        found = extractor(given, sampling_rate=16000, return_tensors="pt")["input_values"]
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found, clip[None])


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (np.zeros(0, np.float32), "empty"),
        (np.zeros(894, np.float32), "at least 895"),
        (np.full(1000, np.nan, np.float32), "NaN"),
        (np.zeros(1000, np.int16), "int16"),
        ([np.zeros(1000, np.float32), np.full(1000, np.inf, np.float32)], "audio 1: 1000 samples are NaN or infinite"),
        (np.zeros((2, 2, 1000), np.float32), "one mono clip"),
    ],
)
def test_bad_input(given: Any, fault: str) -> None:
    with pytest.raises(AudioError, match=fault):
        Wav2Vec2FeatureExtractor()(given, sampling_rate=16000)


def test_rate_padding_and_side() -> None:
    extractor = Wav2Vec2FeatureExtractor()
    with pytest.raises(AudioError, match="8000 Hz"):
        extractor(CLIPS[0], sampling_rate=8000)
    with pytest.warns(UserWarning, match="not stated"):
        extractor(CLIPS[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor(CLIPS[0], sampling_rate=16000)
    with pytest.raises(ValueError, match="padding=True makes rows equal"):
        extractor(CLIPS, sampling_rate=16000, return_tensors="pt")
    with pytest.raises(ValueError, match="needs max_length"):
        extractor(CLIPS, sampling_rate=16000, padding="max_length")
    with pytest.raises(ValueError, match="padding must be"):
        extractor(CLIPS, sampling_rate=16000, padding="shortest")
    with pytest.raises(ValueError, match="padding_side"):
        Wav2Vec2FeatureExtractor(padding_side="left")
    assert extractor.minimum_samples == 895


def test_processor_takes_text_alone_or_beside_audio() -> None:
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    tokenizer = Tokenizer(backend(), **roles)
    processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(do_normalize=False), tokenizer)
    alone = processor(text=["ab", "c"], padding=True, return_tensors="pt")
    assert alone["input_ids"].tolist() == tokenizer(["ab", "c"], padding=True)["input_ids"]
    assert alone["input_ids"][0, 0] == 1
    both = processor(CLIPS[0], text="ab", sampling_rate=16000, text_kwargs={"add_special_tokens": False})
    assert both["labels"] == tokenizer("ab", add_special_tokens=False)["input_ids"]
    assert processor.model_input_names == ["input_values", "attention_mask", "labels"]
    assert processor.batch_decode([[1, 4, 5, 3, 6, 2]], skip_special_tokens=True) == ["ab c"]
    with pytest.raises(ValueError, match="audio, text or both"):
        processor()
