"""The rules for samples that come as arrays: what must not reach a model, and the words in which it is refused."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastspeech.errors import AudioError

Audio = (
    np.ndarray
    | torch.Tensor
    | Sequence[float]
    | Sequence[np.ndarray]
    | Sequence[torch.Tensor]
    | Sequence[Sequence[float]]
)
"""One clip or a batch of them."""


def as_clips(audio: Audio) -> Sequence[Any]:
    """The clips of a batch, or the one clip that is no batch; what a clip holds is not looked at."""
    if isinstance(audio, (np.ndarray, torch.Tensor)):
        return list(audio) if audio.ndim > 1 else [audio]
    if not isinstance(audio, (list, tuple)):
        return [audio]
    scalar = not audio or isinstance(audio[0], (int, float, np.number))
    return [audio] if scalar else audio


def check_samples(samples: Any, name: str = "audio", minimum: int = 1) -> torch.Tensor:
    """One mono clip as a float32 tensor (n,), finite, with at least `minimum` samples, which may be 0.

    `samples` is a tensor (on any device), an array or a sequence of floats. It is not copied where it is float32
    already, and never modified. `name` is what the errors call it.

    Raises:
        AudioError: empty or shorter than `minimum`, NaN or infinite, not one-dimensional, integers (whose scale
            nobody stated), or no numbers at all.
    """
    tensor = _as_tensor(samples, name)
    if not tensor.is_floating_point():
        kind = str(tensor.dtype).removeprefix("torch.")
        scale = f": divide them by their scale, e.g. {torch.iinfo(tensor.dtype).max + 1}" if "int" in kind else ""
        raise AudioError(f"{name}: {kind} samples where floats in [-1, 1] are meant{scale}")
    if tensor.ndim != 1:
        raise AudioError(
            f"{name}: shape {tuple(tensor.shape)} where one mono clip (n,) is meant; average the channels first"
        )
    if len(tensor) == 0 < minimum:
        raise AudioError(f"{name}: empty, it holds no samples")
    if len(tensor) < minimum:
        raise AudioError(f"{name}: {len(tensor)} samples are too short; the model needs at least {minimum}")
    tensor = tensor.float()
    # A sum is finite where all terms are, and cheaper than looking at each; where it overflows, each is looked at.
    if not math.isfinite(tensor.sum()):
        bad = (~tensor.isfinite()).nonzero()
        if len(bad):
            raise AudioError(f"{name}: {len(bad)} samples are NaN or infinite, the first at index {int(bad[0])}")
    return tensor


def check_sampling_rate(given: int | None, expected: int, name: str = "audio") -> None:
    """Raises AudioError where samples have a rate other than the model's, or none was stated."""
    if given is None:
        raise AudioError(
            f"{name}: the sampling rate is not stated; pass sampling_rate={expected} if that is the rate of the samples"
        )
    if given != expected:
        raise AudioError(
            f"{name}: sampled at {given} Hz where the model needs {expected} Hz; resample it, "
            f"e.g. with fastspeech.load_audio(file, sampling_rate={expected})"
        )


def _as_tensor(samples: Any, name: str) -> torch.Tensor:
    if isinstance(samples, torch.Tensor):
        return samples.detach()
    try:
        array = np.asarray(samples)
        if array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("="))
        # Negative strides, which torch does not know, come from samples[::-1]; read-only arrays make it warn.
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))
    except (TypeError, ValueError) as error:
        kind = (
            f"{type(samples).__name__} of {array.dtype}" if isinstance(samples, np.ndarray) else type(samples).__name__
        )
        raise AudioError(f"{name}: not an array of samples but {kind}") from error
