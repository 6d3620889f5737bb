"""CohereAsr on the CPU against transformers: the same weights, the same inputs, float32."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import fastspeech

RATE = 16000
NEW_TOKENS = 60


def sizes(model: Any) -> dict[str, Any]:
    """An encoder of 8 layers of 512 and a decoder of 4 layers of 512: the released model's proportions, for a CPU."""
    encoder = {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_mel_bins": 128,
        "subsampling_conv_channels": 128,
    }
    return {
        "encoder_config": model(**encoder),
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "vocab_size": 16384,
        "decoder_start_token_id": 5,
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    torch.manual_seed(0)
    config = transformers.CohereAsrConfig(**sizes(transformers.ParakeetEncoderConfig))
    theirs = transformers.CohereAsrForConditionalGeneration(config).eval()
    folder = tmp_path_factory.mktemp("cohere")
    theirs.save_pretrained(folder)
    return fastspeech.CohereAsrForConditionalGeneration.from_pretrained(folder), theirs


def speech(clips: int, seconds: float) -> list[np.ndarray]:
    noise = np.random.default_rng(0)
    return [noise.standard_normal(int(seconds * RATE)).astype(np.float32) * 0.1 for _ in range(clips)]


@pytest.mark.parametrize(("clips", "seconds"), [(1, 5.0), (1, 10.0), (1, 35.0), (4, 29.0), (8, 10.0)])
def test_features(against: Any, clips: int, seconds: float) -> None:
    ours, theirs = fastspeech.CohereAsrFeatureExtractor(), transformers.CohereAsrFeatureExtractor()
    audio = speech(clips, seconds)

    def run(extractor: Any) -> Any:
        return extractor(audio, sampling_rate=RATE, return_tensors="pt")["input_features"]

    torch.testing.assert_close(run(ours), run(theirs), atol=5e-4, rtol=1e-3)
    against(lambda: run(ours), lambda: run(theirs))


def inputs(clips: int, seconds: float) -> dict[str, torch.Tensor]:
    batch = fastspeech.CohereAsrFeatureExtractor()(speech(clips, seconds), sampling_rate=RATE, return_tensors="pt")
    return {"input_features": batch["input_features"], "attention_mask": batch["attention_mask"]}


@pytest.mark.parametrize(("clips", "seconds"), [(1, 10.0), (2, 20.0)])
def test_encoder(against: Any, pair: Any, clips: int, seconds: float) -> None:
    ours, theirs = pair
    batch = inputs(clips, seconds)

    def run(model: Any) -> torch.Tensor:
        return model.model.encoder(**batch).last_hidden_state

    valid = theirs.model.encoder(**batch).attention_mask.bool()
    torch.testing.assert_close(run(ours)[valid], run(theirs)[valid], atol=1e-3, rtol=1e-3)
    against(lambda: run(ours), lambda: run(theirs), rounds=7)


def test_encoder_of_uneven_clips(against: Any, pair: Any) -> None:
    """Of 5, 10 and 20 s, so that five twelfths of the batch are padding."""
    ours, theirs = pair
    audio = [speech(1, seconds)[0] for seconds in (5.0, 10.0, 20.0)]
    batch = fastspeech.CohereAsrFeatureExtractor()(audio, sampling_rate=RATE, return_tensors="pt")
    given = {name: batch[name] for name in ("input_features", "attention_mask")}

    def run(model: Any) -> torch.Tensor:
        return model.model.encoder(**given).last_hidden_state

    valid = theirs.model.encoder(**given).attention_mask.bool()
    torch.testing.assert_close(run(ours)[valid], run(theirs)[valid], atol=1e-3, rtol=1e-3)
    against(lambda: run(ours), lambda: run(theirs), rounds=7)


@pytest.mark.parametrize("beams", [1, 4])
def test_decode(against: Any, pair: Any, beams: int) -> None:
    """60 tokens from encoder outputs that are there, so that only decoding is timed."""
    ours, theirs = pair
    batch = inputs(1, 10.0)
    prompt = torch.full((1, 10), 5)
    length = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "num_beams": beams}

    def run(model: Any) -> torch.Tensor:
        # A copy, as transformers repeats the record it is given for each beam.
        return model.generate(
            decoder_input_ids=prompt, encoder_outputs=copy.copy(encoded[model]), do_sample=False, **length
        )

    encoded = {model: model.model.encoder(**batch) for model in pair}
    assert torch.equal(run(ours), run(theirs))
    against(lambda: run(ours), lambda: run(theirs), rounds=5)


def test_transcribe(against: Any, pair: Any) -> None:
    """Two clips of 20 s, encoder and 60 tokens."""
    ours, theirs = pair
    batch = inputs(2, 20.0)
    prompt = torch.full((2, 10), 5)

    def run(model: Any) -> torch.Tensor:
        return model.generate(
            **batch, decoder_input_ids=prompt, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS
        )

    assert torch.equal(run(ours), run(theirs))
    against(lambda: run(ours), lambda: run(theirs), rounds=5)
