"""The engine on the CPU against transformers' generate in batches of 8: 64 clips of 1 to 30 s, float32, same weights.

Each clip has four tokens a second, as speech has about; transformers' batch goes on until its longest is done."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import fastspeech

RATE = 16000
CLIPS = 64
BATCH = 8
TOKENS_PER_SECOND = 4


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """moonshine-tiny's sizes."""
    torch.manual_seed(0)
    theirs = transformers.MoonshineForConditionalGeneration(transformers.MoonshineConfig(pad_token_id=2)).eval()
    theirs.generation_config.suppress_tokens = [2]  # nothing ends before its time
    folder = tmp_path_factory.mktemp("moonshine")
    theirs.save_pretrained(folder)
    return fastspeech.MoonshineForConditionalGeneration.from_pretrained(folder), theirs


class Ids:
    """A tokenizer's part that the engine needs, without a vocabulary."""

    def decode(self, ids: Any, **options: Any) -> Any:
        return [self.decode(row) for row in ids] if ids and isinstance(ids[0], list) else " ".join(map(str, ids))


class Processor:
    def __init__(self) -> None:
        self.feature_extractor = fastspeech.Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True)
        self.tokenizer = Ids()
        self.decode = self.tokenizer.decode

    def __call__(self, audio: Any, **options: Any) -> Any:
        return self.feature_extractor(audio, **options)


def clips() -> list[np.ndarray]:
    noise = np.random.default_rng(0)
    lengths = noise.uniform(1.0, 30.0, CLIPS)
    return [noise.standard_normal(int(seconds * RATE)).astype(np.float32) * 0.1 for seconds in lengths]


def tokens(clip: np.ndarray) -> int:
    return math.ceil(TOKENS_PER_SECOND * len(clip) / RATE)


@pytest.mark.parametrize("order", ["sorted", "unsorted"])
def test_many_clips(against: Any, pair: Any, order: str) -> None:
    ours, theirs = pair
    audio = clips()
    processor = Processor()

    def engine() -> list[list[int]]:
        with fastspeech.Engine(ours, processor, max_rows=64) as running:
            handles = [running.submit(clip, max_new_tokens=tokens(clip)) for clip in audio]
            return [[int(token) for token in handle.result().text.split()] for handle in handles]

    def batches() -> dict[int, list[int]]:
        written: dict[int, list[int]] = {}
        places = sorted(range(CLIPS), key=lambda i: len(audio[i])) if order == "sorted" else list(range(CLIPS))
        for first in range(0, CLIPS, BATCH):
            batch = places[first : first + BATCH]
            inputs = processor([audio[i] for i in batch], sampling_rate=RATE, padding=True, return_tensors="pt")
            rows = theirs.generate(**inputs, do_sample=False, max_new_tokens=max(tokens(audio[i]) for i in batch))
            written |= {i: row[: 1 + tokens(audio[i])].tolist() for i, row in zip(batch, rows, strict=True)}
        return written

    assert all(len(row) == 1 + tokens(clip) for row, clip in zip(engine(), audio, strict=True))
    against(engine, batches, rounds=1)
