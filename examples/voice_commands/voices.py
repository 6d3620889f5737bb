"""Synthetic speakers for the training mix: espeak-ng (and flite where it is installed), one program call a phrase."""

import random
import shutil
import subprocess
import tempfile
from pathlib import Path

from tqdm import tqdm

from fastspeech import load_audio

from .clips import DIGITS, WORDS, Clip, make_clip

ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")
FLITE = ("kal16", "awb", "rms", "slt")


def espeak_variants() -> list[str]:
    """Names of the voice variants that the installed espeak-ng has (f1, m3, Annie, ...)."""
    listing = subprocess.run(["espeak-ng", "--voices=variant"], capture_output=True, text=True, check=True).stdout
    return sorted({line.split("!v/")[1].split()[0] for line in listing.splitlines() if "!v/" in line})


def espeak_command(text: str, target: Path, draw: random.Random, variants: list[str]) -> tuple[str, list[str]]:
    voice = f"{draw.choice(ACCENTS)}+{draw.choice(variants)}"
    speed, pitch = draw.randint(110, 190), draw.randint(20, 80)
    return voice, ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(target), text]


def flite_command(text: str, target: Path, draw: random.Random) -> tuple[str, list[str]]:
    voice = draw.choice(FLITE)
    stretch = f"duration_stretch={draw.uniform(0.8, 1.3):.2f}"
    return f"flite-{voice}", ["flite", "-voice", voice, "--setf", stretch, "-t", text, "-o", str(target)]


def synthesise(singles: int, phrases: int, seed: int) -> list[Clip]:
    """`singles` clips of one word and `phrases` clips of two to five words in one flow, by many synthetic speakers.

    Digits, of which there are few human speakers, come twice as often as the other words. A third of the clips is
    flite's where that program exists; without espeak-ng the list is empty, with a line that says so.
    """
    if shutil.which("espeak-ng") is None:
        print("espeak-ng is not installed: no synthetic voices join the mix")
        return []
    draw, variants, clips = random.Random(seed), espeak_variants(), []
    flite = shutil.which("flite") is not None
    pool = (*WORDS, *DIGITS)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "clip.wav"
        for index in tqdm(range(singles + phrases), desc="synthetic voices", leave=False):
            words = tuple(draw.choice(pool) for _ in range(1 if index < singles else draw.randint(2, 5)))
            text = " ".join(words) if draw.random() < 0.6 else ", ".join(words)
            if flite and draw.random() < 1 / 3:
                voice, command = flite_command(text, target, draw)
            else:
                voice, command = espeak_command(text, target, draw, variants)
            subprocess.run(command, check=True, capture_output=True)
            clips.append(make_clip(load_audio(target), words, voice))
    return clips
