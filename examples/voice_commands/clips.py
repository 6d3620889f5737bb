"""Recordings in, trimmed clips out: reading the manifest, finding the word in a clip, keeping whole speakers apart."""

import csv
import random
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastspeech import load_audio

RATE = 16000
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
KEPT_OUT = {"mixed": 6, "commands": 28, "narrow": 1}
WORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", *DIGITS)


@dataclass(frozen=True)
class Clip:
    """One recording: mono float32 samples at 16 kHz, the words in it, and where the speech lies."""

    samples: np.ndarray
    words: tuple[str, ...]
    speaker: str
    start: int
    stop: int
    narrow: bool = False  # recorded at 8 kHz: nothing above 4 kHz


def speech_bounds(samples: np.ndarray) -> tuple[int, int]:
    """First and one-past-last sample of what is louder than the background, found on 20 ms frames every 10 ms."""
    frame, hop = 320, 160
    if len(samples) < 3 * frame:
        return 0, len(samples)
    power = np.convolve(samples.astype(np.float64) ** 2, np.full(frame, 1 / frame), "valid")[::hop]
    level = np.sqrt(np.maximum(power, 0))
    threshold = max(0.04 * level.max(), min(2.5 * float(np.quantile(level, 0.1)), 0.1 * level.max()))
    loud = np.flatnonzero(level > threshold)
    return int(loud[0] * hop), int(min(len(samples), loud[-1] * hop + frame))


def make_clip(samples: np.ndarray, words: tuple[str, ...], speaker: str, narrow: bool = False) -> Clip:
    """A clip scaled to a root mean square of 0.1 over its speech, so that mixing need not care how it was recorded."""
    start, stop = speech_bounds(samples)
    rms = float(np.sqrt(np.mean(samples[start:stop] ** 2)))
    return Clip((samples * (0.1 / max(rms, 1e-4))).astype(np.float32), words, speaker, start, stop, narrow)


def read_manifest(folder: Path) -> list[dict[str, str]]:
    """The rows of `folder`/manifest.csv: path, word, speaker, source, sample_rate and samples of each recording."""
    with open(folder / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


def split_speakers(rows: list[dict[str, str]], seed: int = 0) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """(rows to train on, rows kept out to measure on), no speaker in both.

    Kept out: of the speakers with at least four recordings, `KEPT_OUT` of those who say digits and commands, those who
    only say commands, and those recorded at 8 kHz, drawn with `seed`.
    """
    by_speaker: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_speaker[row["speaker"]].append(row)
    groups: dict[str, list[str]] = defaultdict(list)
    for speaker, own in sorted(by_speaker.items()):
        if len(own) >= 4:
            digits = any(row["word"] in DIGITS for row in own)
            groups["narrow" if is_narrow(own[0]) else "mixed" if digits else "commands"].append(speaker)
    draw = random.Random(seed)
    kept = {s for kind, count in KEPT_OUT.items() for s in draw.sample(groups[kind], count)}
    return [r for r in rows if r["speaker"] not in kept], [r for r in rows if r["speaker"] in kept]


def is_narrow(row: dict[str, str]) -> bool:
    return int(row["sample_rate"]) < RATE


def read_clips(folder: Path, rows: list[dict[str, str]]) -> list[Clip]:
    """The recordings of these rows of the manifest."""
    return [make_clip(load_audio(folder / row["path"]), (row["word"],), row["speaker"], is_narrow(row)) for row in rows]


def read_noise(folder: Path) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Background recordings without speech: those to train on, and every fourth, kept out to measure on."""
    sounds = [load_audio(path) for path in sorted((folder / "_background_").glob("*.flac"))]
    return [s for i, s in enumerate(sounds) if i % 4], sounds[::4]
