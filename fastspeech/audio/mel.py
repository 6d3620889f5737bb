"""Mel filter banks: matrices that turn a power spectrum into band energies.

They are computed in float64 and rounded once to float32, which is what the checkpoints were trained with.
"""

import numpy as np
import torch
from numpy.typing import NDArray

_SLANEY_HZ_PER_MEL = 200.0 / 3.0
_SLANEY_LOG_START_HZ = 1000.0
_SLANEY_LOG_START_MEL = _SLANEY_LOG_START_HZ / _SLANEY_HZ_PER_MEL
_SLANEY_LOG_STEP = np.log(6.4) / 27.0


def slaney_mel_filters(n_mels: int, n_fft: int, sampling_rate: int) -> torch.Tensor:
    """The bank of M. Slaney's Auditory Toolbox, each triangle divided by its width in Hz, from 0 Hz to Nyquist.

    The scale is linear below 1 kHz (200/3 Hz a mel) and logarithmic above (27 mels for a factor of 6.4); triangles are
    linear in Hz. Equal bit for bit to `librosa.filters.mel(sr=sampling_rate, n_fft=n_fft, n_mels=n_mels)`.
    `sampling_rate` is at least 2000 Hz.

    Returns a float32 tensor (n_mels, n_fft // 2 + 1).
    """
    top = _SLANEY_LOG_START_MEL + np.log(sampling_rate / 2 / _SLANEY_LOG_START_HZ) / _SLANEY_LOG_STEP
    mels = np.linspace(0.0, top, n_mels + 2)
    edges = np.where(
        mels < _SLANEY_LOG_START_MEL,
        mels * _SLANEY_HZ_PER_MEL,
        _SLANEY_LOG_START_HZ * np.exp((mels - _SLANEY_LOG_START_MEL) * _SLANEY_LOG_STEP),
    )
    bank = _triangles(edges, np.linspace(0.0, sampling_rate / 2, n_fft // 2 + 1)).astype(np.float32)
    # Rounded before the scaling as well as after it: librosa does, and the last bit depends on it.
    bank *= (2.0 / (edges[2:] - edges[:-2]))[:, None]
    return torch.from_numpy(bank)


def kaldi_mel_filters(
    n_mels: int, n_fft: int, sampling_rate: int, low_hz: float = 20.0, high_hz: float | None = None
) -> torch.Tensor:
    """Kaldi's bank: triangles equally spaced and linear in mel = 1127 ln(1 + f / 700), of height 1.

    `high_hz` is Nyquist where it is not given; the Nyquist bin then has no weight.

    Returns a float32 tensor (n_mels, n_fft // 2 + 1).
    """
    high_hz = sampling_rate / 2 if high_hz is None else high_hz
    low, high = _kaldi_mel(np.array([low_hz, high_hz]))
    bins = _kaldi_mel(np.arange(n_fft // 2 + 1) * np.float64(sampling_rate / n_fft))
    return torch.from_numpy(_triangles(np.linspace(low, high, n_mels + 2), bins).astype(np.float32))


def _kaldi_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    return 1127.0 * np.log(1.0 + hz / 700.0)


def _triangles(edges: NDArray[np.float64], bins: NDArray[np.float64]) -> NDArray[np.float64]:
    """(len(edges) - 2, len(bins)): filter m rises from edges[m] to 1 at edges[m + 1] and falls to edges[m + 2]."""
    distance = edges[:, None] - bins[None, :]
    width = np.diff(edges)[:, None]
    rising = -distance[:-2] / width[:-1]
    falling = distance[2:] / width[1:]
    return np.maximum(0.0, np.minimum(rising, falling))
