"""Moonshine on the CPU against transformers: the same weights, the same inputs, float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

import fastspeech

RATE = 16000
NEW_TOKENS = 60


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """moonshine-tiny's sizes: its configuration's defaults, with heads padded to 40 where transformers pads them."""
    torch.manual_seed(0)
    config = transformers.MoonshineConfig(pad_head_dim_to_multiple_of=8, pad_token_id=2)
    theirs = transformers.MoonshineForConditionalGeneration(config).eval()
    folder = tmp_path_factory.mktemp("moonshine")
    theirs.save_pretrained(folder)
    return fastspeech.MoonshineForConditionalGeneration.from_pretrained(folder), theirs


def inputs(clips: int, seconds: float) -> dict[str, torch.Tensor]:
    """Clips of which every second is shorter by a quarter."""
    noise = np.random.default_rng(0)
    lengths = [int(seconds * RATE * (1 - 0.25 * (i % 2))) for i in range(clips)]
    audio = [noise.standard_normal(length).astype(np.float32) * 0.1 for length in lengths]
    extractor = fastspeech.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
    return extractor(audio, sampling_rate=RATE, padding=True, return_tensors="pt")


@pytest.mark.parametrize("clips", [1, 8])
def test_encoder(against: Any, pair: Any, clips: int) -> None:
    ours, theirs = pair
    batch = inputs(clips, 10.0)

    def run(model: Any) -> Any:
        return model.model.encoder(**batch)

    valid = run(theirs).attention_mask.bool()
    torch.testing.assert_close(run(ours)[0][valid], run(theirs)[0][valid], atol=1e-3, rtol=1e-3)
    against(lambda: run(ours), lambda: run(theirs), rounds=7)


@pytest.mark.parametrize("clips", [1, 8])
def test_transcribe(against: Any, pair: Any, clips: int) -> None:
    """10 s and 60 tokens, encoder and decoder."""
    batch = inputs(clips, 10.0)

    def run(model: Any) -> torch.Tensor:
        return model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)

    ours, theirs = pair
    assert torch.equal(run(ours), run(theirs))
    against(lambda: run(ours), lambda: run(theirs), rounds=5)
