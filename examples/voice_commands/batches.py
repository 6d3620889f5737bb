"""Endless batches of features and labels: utterances of like length together, features by the library's extractor."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from .clips import RATE
from .mixing import Mixer, Utterance
from .model import EOS, PAD, TOKENS, feature_extractor, prompt

WORD_COUNTS = (0.08, 0.17, 0.16, 0.15, 0.14, 0.11, 0.07, 0.04, 0.03, 0.02, 0.015, 0.01, 0.005)  # of 0, 1, ... 12 words
POOL = 320
LONGEST = 12 * RATE


class Batches(IterableDataset):
    """Yields dicts: input_features (B, T, M), attention_mask (B, T), decoder_input_ids and labels (B, U), words (lists
    of ids).

    `seconds` bounds the padded audio of a batch, so that every step costs about the same. Over the first `ramp`
    utterances they grow from one word to twelve and from clean to as disturbed as they get: the decoder finds out where
    to look while that is easy (without this it takes many times as long).
    """

    def __init__(self, mixer: Mixer, seconds: float, ramp: int, seed: int) -> None:
        self.mixer, self.seconds, self.ramp, self.seed = mixer, seconds, ramp, seed

    def __iter__(self) -> Iterator[dict]:
        worker = get_worker_info()
        draw = np.random.default_rng([self.seed, worker.id if worker else 0])
        extractor = feature_extractor()
        extractor.max_audio_clip_s = 60.0  # an utterance here is one row, never split
        made = 0
        while True:
            hardness = min(made / self.ramp, 1.0)
            most = 1 + int((len(WORD_COUNTS) - 1) * hardness**2)
            counts = np.minimum(draw.choice(len(WORD_COUNTS), POOL, p=WORD_COUNTS), most)
            made += POOL
            pool = sorted((self.mixer.utterance(int(n), draw, hardness) for n in counts), key=lambda u: len(u.samples))
            groups = self.grouped([u for u in pool if RATE // 5 < len(u.samples) <= LONGEST])
            for index in draw.permutation(len(groups)):
                yield collate(groups[index], extractor, draw, hardness)

    def grouped(self, pool: list[Utterance]) -> list[list[Utterance]]:
        groups: list[list[Utterance]] = [[]]
        for utterance in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(utterance.samples) > self.seconds * RATE:
                groups.append([])
            groups[-1].append(utterance)
        return groups


def collate(utterances: list[Utterance], extractor, draw: np.random.Generator, hardness: float) -> dict:
    inputs = extractor([u.samples for u in utterances], sampling_rate=RATE, return_tensors="pt")
    words = [[TOKENS[w] for w in u.words] for u in utterances]
    prompts = [prompt(bool(draw.random() < 0.7)) for _ in utterances]
    longest = max(len(row) for row in words)
    ids = [start + row + [PAD] * (longest - len(row)) for start, row in zip(prompts, words, strict=True)]
    labels = [[-100] * (len(prompts[0]) - 1) + row + [EOS] + [-100] * (longest - len(row)) for row in words]
    return {
        "input_features": augmented(inputs["input_features"], inputs["attention_mask"], draw, hardness),
        "attention_mask": inputs["attention_mask"],
        "decoder_input_ids": torch.tensor(ids),
        "labels": torch.tensor(labels),
        "words": words,
    }


def augmented(features: Tensor, mask: Tensor, draw: np.random.Generator, hardness: float) -> Tensor:
    """`features` (B, T, M) with the mel axis of each row warped (another vocal tract, Jaitly and Hinton 2013), then
    with bands and stretches of time blanked (SpecAugment, Park et al. 2019); `mask` (B, T) is true at valid frames."""
    rows, _, mels = features.shape
    warps = np.where(draw.random(rows) < 0.7, draw.uniform(0.87, 1.15, rows) ** hardness, 1.0)
    source = np.clip(np.arange(mels) * warps[:, None], 0, mels - 1)
    low = np.minimum(source.astype(int), mels - 2)
    part = source - low
    weights = np.zeros((rows, mels, mels), np.float32)
    every, column = np.arange(rows)[:, None], np.arange(mels)
    weights[every, low, column] = 1 - part
    weights[every, low + 1, column] += part
    features = features @ torch.from_numpy(weights)
    for row, valid in enumerate(mask.sum(1).tolist()):
        if draw.random() > hardness:
            continue
        for _ in range(draw.integers(0, 3)):
            width = int(draw.integers(1, 15))
            start = int(draw.integers(0, mels - width))
            features[row, :, start : start + width] = 0
        for _ in range(draw.integers(0, 2 + valid // 100)):
            width = int(draw.integers(1, 12))
            start = int(draw.integers(0, max(1, valid - width)))
            features[row, start : start + width] = 0
    return features
