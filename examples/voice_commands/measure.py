"""Word error rate over sequences of words by people kept out of training, and what the model makes of noise."""

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastspeech import CohereAsrForConditionalGeneration, CohereAsrProcessor

from .clips import DIGITS, RATE, Clip


@dataclass(frozen=True)
class Sequence:
    samples: np.ndarray
    words: tuple[str, ...]
    speaker: str


def sequences(clips: list[Clip], count: int, lengths: tuple[int, int], seed: int = 0) -> list[Sequence]:
    """`count` sequences, each of one speaker's own words, speakers in turn.

    Words are cut out with 0.1 s of their surroundings, with 0.1 to 0.4 s of silence around each; their number is
    uniform in `lengths` (both included).
    """
    by_speaker: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_speaker[clip.speaker].append(clip)
    draw, result = random.Random(seed), []
    order = sorted(by_speaker)
    for index in range(count):
        speaker = order[index % len(order)]
        chosen = [draw.choice(by_speaker[speaker]) for _ in range(draw.randint(*lengths))]
        parts = [silence(draw)]
        for clip in chosen:
            parts += [clip.samples[max(0, clip.start - RATE // 10) : clip.stop + RATE // 10], silence(draw)]
        result.append(Sequence(np.concatenate(parts), tuple(w for c in chosen for w in c.words), speaker))
    return result


def silence(draw: random.Random) -> np.ndarray:
    return np.zeros(int(RATE * draw.uniform(0.1, 0.4)), np.float32)


@dataclass
class Errors:
    """Counts of a Levenshtein alignment of words, summed over utterances."""

    words: int = 0
    substituted: Counter = field(default_factory=Counter)  # (said, heard)
    deleted: Counter = field(default_factory=Counter)
    inserted: Counter = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        wrong = self.substituted.total() + self.deleted.total() + self.inserted.total()
        return wrong / max(self.words, 1)

    def add(self, said: list[str], heard: list[str]) -> None:
        self.words += len(said)
        cost = np.zeros((len(said) + 1, len(heard) + 1), int)
        cost[:, 0], cost[0] = np.arange(len(said) + 1), np.arange(len(heard) + 1)
        for i, a in enumerate(said, 1):
            for j, b in enumerate(heard, 1):
                cost[i, j] = min(cost[i - 1, j - 1] + (a != b), cost[i - 1, j] + 1, cost[i, j - 1] + 1)
        i, j = len(said), len(heard)
        while i or j:
            if i and j and cost[i, j] == cost[i - 1, j - 1] + (said[i - 1] != heard[j - 1]):
                i, j = i - 1, j - 1
                if said[i] != heard[j]:
                    self.substituted[said[i], heard[j]] += 1
            elif i and cost[i, j] == cost[i - 1, j] + 1:
                i -= 1
                self.deleted[said[i]] += 1
            else:
                j -= 1
                self.inserted[heard[j]] += 1


def transcribe(model, processor, sounds: list[np.ndarray], batch: int = 32) -> list[str]:
    """The library's front door: processor, `generate`, `decode`; sounds of like length together."""
    order = sorted(range(len(sounds)), key=lambda i: len(sounds[i]))
    texts = [""] * len(sounds)
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        inputs = processor([sounds[i] for i in chosen], language="en", sampling_rate=RATE, return_tensors="pt")
        index = inputs.pop("audio_chunk_index")
        tokens = model.generate(**inputs, max_new_tokens=64)
        decoded = processor.decode(tokens, skip_special_tokens=True, audio_chunk_index=index, language="en")
        for i, text in zip(chosen, decoded, strict=True):
            texts[i] = text.strip()
    return texts


def measure(model, processor, tests: list[Sequence]) -> tuple[Errors, dict[str, Errors]]:
    """Errors over all `tests`, and speaker by speaker."""
    total = Errors()
    per_speaker: dict[str, Errors] = defaultdict(Errors)
    for test, text in zip(tests, transcribe(model, processor, [t.samples for t in tests]), strict=True):
        for errors in (total, per_speaker[test.speaker]):
            errors.add(list(test.words), text.split())
    return total, per_speaker


def report(folder: Path, kept_out: list[Clip], noises: list[np.ndarray]) -> dict[str, Any]:
    """What the model card says, measured on the checkpoint in `folder`."""
    model = CohereAsrForConditionalGeneration.from_pretrained(folder)
    processor = CohereAsrProcessor.from_pretrained(folder)
    sets = {
        "all": (kept_out, 700, (1, 5)),
        "long, 6 to 10 words": (kept_out, 210, (6, 10)),
        "single words": (kept_out, 700, (1, 1)),
        "commands": ([c for c in kept_out if c.words[0] not in DIGITS], 340, (1, 5)),
        "digits, wide-band speakers": ([c for c in kept_out if c.words[0] in DIGITS and not c.narrow], 120, (1, 5)),
        "digits, the 8 kHz speaker": ([c for c in kept_out if c.narrow], 200, (1, 5)),
    }
    result: dict[str, Any] = {"speakers": len({c.speaker for c in kept_out})}
    for name, (chosen, count, lengths) in sets.items():
        errors, _ = measure(model, processor, sequences(chosen, count, lengths))
        result[name] = {"sequences": count, "words": errors.words, "word error rate": round(errors.rate, 4)}
        if name == "all":
            result["most confused"] = [[*pair, n] for pair, n in errors.substituted.most_common(12)]
            result["deleted"], result["inserted"] = (dict(c.most_common(6)) for c in (errors.deleted, errors.inserted))
    draw = torch.Generator().manual_seed(0)
    white = [torch.randn(RATE * seconds, generator=draw).numpy() * 0.1 for seconds in (1, 2, 3, 5)]
    silent = [np.zeros(RATE * seconds, np.float32) for seconds in (1, 2, 3, 5)]
    for name, sounds in {"background kept out": noises, "white noise": white, "silence": silent}.items():
        texts = transcribe(model, processor, sounds)
        result[name] = {"sounds": len(sounds), "with words": sum(text != "" for text in texts)}
    return result
