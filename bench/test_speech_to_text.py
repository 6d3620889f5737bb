"""Speech2Text on the CPU against transformers: the same weights, the same inputs, float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import fastspeech

RATE = 16000
NEW_TOKENS = 60
BEAMS = 5


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """s2t-small's sizes: its configuration's defaults. Embeddings are spread wider, so that beams do not tie."""
    torch.manual_seed(0)
    theirs = transformers.Speech2TextForConditionalGeneration(transformers.Speech2TextConfig(init_std=0.05)).eval()
    folder = tmp_path_factory.mktemp("s2t")
    theirs.save_pretrained(folder)
    return fastspeech.Speech2TextForConditionalGeneration.from_pretrained(folder), theirs


def speech(clips: int, seconds: float) -> list[np.ndarray]:
    """Clips of which every second is shorter by a quarter."""
    noise = np.random.default_rng(0)
    lengths = [int(seconds * RATE * (1 - 0.25 * (i % 2))) for i in range(clips)]
    return [noise.standard_normal(length).astype(np.float32) * 0.1 for length in lengths]


def inputs(clips: int, seconds: float) -> dict[str, torch.Tensor]:
    extractor = fastspeech.Speech2TextFeatureExtractor()
    return extractor(speech(clips, seconds), sampling_rate=RATE, padding=True, return_tensors="pt")


@pytest.mark.parametrize(("clips", "seconds"), [(1, 5.0), (1, 10.0), (1, 30.0), (4, 29.0), (8, 10.0)])
def test_features(against: Any, clips: int, seconds: float) -> None:
    """Kaldi's filter banks and their normalisation."""
    ours, theirs = fastspeech.Speech2TextFeatureExtractor(), transformers.Speech2TextFeatureExtractor()
    audio = speech(clips, seconds)

    def run(extractor: Any) -> Any:
        return extractor(audio, sampling_rate=RATE, padding=True, return_tensors="pt")["input_features"]

    torch.testing.assert_close(run(ours), run(theirs), atol=5e-4, rtol=1e-3)
    against(lambda: run(ours), lambda: run(theirs))


@pytest.mark.parametrize("clips", [1, 8])
def test_encoder(against: Any, pair: Any, clips: int) -> None:
    ours, theirs = pair
    batch = inputs(clips, 10.0)

    def run(model: Any) -> torch.Tensor:
        return model.model.encoder(**batch)[0]

    valid = ours.model.encoder(**batch).attention_mask.bool()
    torch.testing.assert_close(run(ours)[valid], run(theirs)[valid], atol=1e-3, rtol=1e-3)
    against(lambda: run(ours), lambda: run(theirs), rounds=7)


@pytest.mark.parametrize("clips", [1, 8])
def test_transcribe(against: Any, pair: Any, clips: int) -> None:
    """10 s and 60 tokens with 5 beams, encoder and decoder."""
    batch = inputs(clips, 10.0)

    def run(model: Any) -> torch.Tensor:
        return model.generate(
            **batch, num_beams=BEAMS, early_stopping=True, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS
        )

    ours, theirs = pair
    assert torch.equal(run(ours), run(theirs))
    against(lambda: run(ours), lambda: run(theirs), rounds=5)
