"""Utterances made on the fly: words joined with gaps; other speeds, rooms, microphones, backgrounds; and plain noise.

Everything is numpy on 16 kHz float32 and draws from the generator it is given.
"""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from .clips import RATE, Clip

Generator = np.random.Generator
MARGINS, MARGIN_SHARES = (0.0, 0.05, 0.15, 1.0), (0.1, 0.4, 0.35, 0.15)  # seconds kept around the speech of a clip


@dataclass(frozen=True)
class Utterance:
    samples: np.ndarray
    words: tuple[str, ...]


def resample_filtered(samples: np.ndarray, speed: float, gain: np.ndarray, mirror: float = 0.0) -> np.ndarray:
    """Play `samples` `speed` times as fast and multiply the spectrum by `gain`, linear on an even grid from 0 to 8 kHz.

    `mirror` > 0 folds the band below 4 kHz, times that factor, into the empty upper one, which gives a recording made
    at 8 kHz an upper band like a wide-band one. Ends are padded by 10 ms against the circular wrap of the transform,
    and lengths are whole multiples of 10 ms, for which the transform is fast.
    """
    hop = RATE // 100
    padded = np.pad(samples, (hop, hop + -len(samples) % hop))
    count = max(1, round(len(padded) / speed / hop)) * hop
    spectrum = np.fft.rfft(padded)
    if mirror > 0:
        half = len(spectrum) // 2
        spectrum[-half:] += mirror * np.conj(spectrum[:half][::-1])
    wanted = count // 2 + 1
    spectrum = spectrum[:wanted] if len(spectrum) >= wanted else np.pad(spectrum, (0, wanted - len(spectrum)))
    spectrum *= np.interp(np.linspace(0, 1, wanted), np.linspace(0, 1, len(gain)), gain)
    return np.fft.irfft(spectrum, count).astype(np.float32) * (count / len(padded))


def random_equaliser(draw: Generator) -> np.ndarray:
    """A smooth random response within about 10 dB on 65 points, at times without what a telephone leaves out."""
    grid = np.linspace(0, 1, 65)
    decibels = np.zeros(65)
    for k in (1, 2, 3, 4):
        decibels += draw.normal(0, 3.0 / k) * np.cos(np.pi * k * grid**0.5 + draw.uniform(0, 2 * np.pi))
    gain = 10 ** (decibels / 20)
    if draw.random() < 0.4:
        gain *= 1 / (1 + np.exp((grid - draw.uniform(0.40, 0.49)) * 120))
    if draw.random() < 0.15:
        gain *= 1 / (1 + np.exp((draw.uniform(0.01, 0.04) - grid) * 300))
    return gain


def reverberate(samples: np.ndarray, draw: Generator) -> np.ndarray:
    """A room: the direct sound and exponentially decaying noise of 0.05 to 0.3 s, at a random ratio."""
    length = int(RATE * draw.uniform(0.05, 0.3))
    tail = draw.standard_normal(length).astype(np.float32) * np.exp(-6.9 * np.arange(length, dtype=np.float32) / length)
    tail *= 10 ** (draw.uniform(-15, 0) / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    size = 1 << (len(samples) + length - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)[: len(samples)].astype(np.float32)


def noise(length: int, recordings: list[np.ndarray], draw: Generator) -> np.ndarray:
    """`length` samples at a root mean square of 1: background recordings joined anew, or coloured noise."""
    kind = draw.random()
    if kind < 0.6:
        pieces: list[np.ndarray] = []
        have = 0
        while have < length:
            piece = recordings[draw.integers(len(recordings))] if not pieces or draw.random() < 0.3 else pieces[-1]
            piece = np.roll(piece, draw.integers(len(piece)))
            pieces.append(piece)
            have += len(piece)
        sound = np.concatenate(pieces)[:length]
        if draw.random() < 0.5:
            sound = resample_filtered(sound, 1.0, random_equaliser(draw))[RATE // 100 :][:length]
    else:
        slope = draw.choice([0.0, 0.5, 1.0])
        size = 1 << max(length - 1, 1).bit_length()
        spectrum = np.fft.rfft(draw.standard_normal(size).astype(np.float32))
        spectrum *= np.maximum(np.linspace(0, 1, len(spectrum)), 0.003) ** -slope
        if draw.random() < 0.5:
            spectrum *= np.interp(np.linspace(0, 1, len(spectrum)), np.linspace(0, 1, 65), random_equaliser(draw))
        sound = np.fft.irfft(spectrum, size)[:length]
        if kind > 0.9:
            hum = 2 * np.pi * draw.uniform(50, 400) / RATE * np.arange(length)
            sound = sound / (np.std(sound) + 1e-9) + draw.uniform(0.5, 5) * np.sin(hum)
    sound = sound * np.interp(np.arange(length), np.linspace(0, length, 6), draw.uniform(0.3, 1.0, 6))
    return (sound / (np.sqrt(np.mean(sound**2)) + 1e-9)).astype(np.float32)


class Mixer:
    """Draws utterances from clips: all words are as frequent, and a speaker with many clips of a word hardly more heard
    than one with few. A word is a synthetic voice's with probability `synthetic_share`."""

    def __init__(
        self, human: list[Clip], synthetic: list[Clip], recordings: list[np.ndarray], synthetic_share: float
    ) -> None:
        self.recordings, self.synthetic_share = recordings, synthetic_share
        self.human = self._by_word(human)
        self.synthetic = self._by_word([c for c in synthetic if len(c.words) == 1])
        self.phrases = [c for c in synthetic if len(c.words) > 1]
        self.words = sorted(self.human)
        counts: dict[tuple[str, str], int] = defaultdict(int)
        for clip in human:
            counts[clip.words[0], clip.speaker] += 1
        self.weights = {}
        for word, clips in self.human.items():
            weight = np.array([counts[word, c.speaker] ** -0.6 for c in clips])
            self.weights[word] = np.cumsum(weight / weight.sum())

    @staticmethod
    def _by_word(clips: list[Clip]) -> dict[str, list[Clip]]:
        table: dict[str, list[Clip]] = defaultdict(list)
        for clip in clips:
            table[clip.words[0]].append(clip)
        return table

    def draw_clip(self, draw: Generator) -> Clip:
        if self.phrases and draw.random() < self.synthetic_share / 4:
            return self.phrases[draw.integers(len(self.phrases))]
        word = self.words[draw.integers(len(self.words))]
        if self.synthetic[word] and draw.random() < self.synthetic_share:
            return self.synthetic[word][draw.integers(len(self.synthetic[word]))]
        index = int(np.searchsorted(self.weights[word], draw.random()))
        return self.human[word][min(index, len(self.human[word]) - 1)]

    def utterance(self, count: int, draw: Generator, hardness: float = 1.0) -> Utterance:
        """About `count` words (a phrase may add some); 0 gives a background or silence with no words in it.

        `hardness` in 0 ... 1 scales how often and how far an utterance is changed.
        """
        if count == 0:
            return self.empty(draw)
        equaliser, tempo = random_equaliser(draw) ** hardness, draw.uniform(0.85, 1.18) ** hardness
        bright, spread = draw.random() < 0.5, 0.0 if draw.random() < 0.3 else draw.uniform(0.02, 0.15)
        parts = [self.gap(draw, 0.6)]
        words: list[str] = []
        while len(words) < count:
            clip = self.draw_clip(draw)
            before, after = (RATE * draw.choice(MARGINS, 2, p=MARGIN_SHARES)).astype(int)
            piece = clip.samples[max(0, clip.start - before) : clip.stop + after]
            mirror = draw.uniform(0.03, 0.5) if clip.narrow and bright else 0.0
            speed = float(np.clip(tempo * (1 + draw.normal(0, spread / 2)), 0.8, 1.25))
            parts.append(resample_filtered(piece, speed, equaliser, mirror) * 10 ** (draw.normal(0, 3) / 20))
            parts.append(self.gap(draw, 0.35))
            words.extend(clip.words)
        sound = np.concatenate(parts)
        if draw.random() < 0.25 * hardness:
            sound = reverberate(sound, draw)
        if draw.random() < 0.7 * hardness:
            ratio = draw.uniform(3 + 15 * (1 - hardness), 35)
            sound = sound + noise(len(sound), self.recordings, draw) * np.float32(0.1 * 10 ** (-ratio / 20))
        return Utterance(self.levelled(sound, draw), tuple(words))

    def empty(self, draw: Generator) -> Utterance:
        length = int(RATE * draw.uniform(0.3, 4.0))
        if draw.random() < 0.15:
            return Utterance(np.zeros(length, np.float32), ())
        sound = noise(length, self.recordings, draw)
        if draw.random() < 0.3:
            sound = sound + noise(length, self.recordings, draw) * np.float32(draw.uniform(0.2, 1))
        return Utterance(self.levelled(sound * np.float32(0.1), draw), ())

    @staticmethod
    def gap(draw: Generator, longest: float) -> np.ndarray:
        """Silence between words: mostly short, at times as long as a second and a half."""
        seconds = draw.uniform(0.4, 1.5) if draw.random() < 0.08 else draw.uniform(0, longest)
        return np.zeros(int(RATE * seconds), np.float32)

    @staticmethod
    def levelled(sound: np.ndarray, draw: Generator) -> np.ndarray:
        """At a random level from faint to loud; the loud are clipped at full scale as a microphone would."""
        return np.clip(sound * 10 ** (draw.uniform(-30, 12) / 20), -1, 1).astype(np.float32)
