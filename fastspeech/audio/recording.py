"""What the pipeline takes for a recording: a path, a URL, bytes, a file, samples, or samples with their rate."""

import os
from typing import Any

import numpy as np
import torch

from fastspeech.audio.check import check_samples
from fastspeech.audio.load import load_audio, resample
from fastspeech.audio.source import source_name
from fastspeech.errors import AudioError


def is_recording(inputs: Any) -> bool:
    """Whether this is one recording, rather than several."""
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, torch.Tensor, dict)
    return isinstance(inputs, kinds) or hasattr(inputs, "read")


def recording_name(item: Any, number: int) -> str:
    """What messages call a recording, the `number`th of a call."""
    path = item.get("path") if isinstance(item, dict) else None
    if isinstance(item, np.ndarray | torch.Tensor | dict):
        return path if isinstance(path, str) else f"input {number}"
    return source_name(item)


def recording_samples(item: Any, name: str, rate: int) -> Any:
    """The samples of a recording at `rate`.

    Raises:
        AudioError: it cannot be read, or a dictionary lacks the samples or a sensible rate; messages begin with `name`.
        TypeError: it is no recording.
    """
    if isinstance(item, np.ndarray | torch.Tensor):
        return item
    if not isinstance(item, dict):
        return load_audio(item, sampling_rate=rate)
    samples = item.get("raw", item.get("array"))
    if samples is None:
        raise AudioError(f"{name}: a dictionary needs the samples as 'raw' or 'array', and their 'sampling_rate'")
    given = item.get("sampling_rate")
    if not isinstance(given, int | np.integer) or not 0 < given < 10_000_000:
        raise AudioError(f"{name}: sampling_rate is {given!r}; state the rate of the samples in Hz")
    if given == rate:
        return samples
    return resample(check_samples(samples, name).cpu().numpy(), int(given), rate)
