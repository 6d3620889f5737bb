"""log_mel on the CPU without gradients: row by row and some frames at a time, in memory that its caches hold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FRAMES_AT_A_TIME = 384
"""Whose samples, spectra and energies take about 3 MB on the way."""

BINS_AT_A_TIME = 32
"""Bins side by side, which weigh a fraction of the frequencies."""


def log_mel(
    waveform: Tensor,
    lengths: Tensor | None,
    window: Tensor,
    mel: Tensor,
    n_fft: int,
    hop: int,
    preemphasis: float,
    per_frame: bool,
    log_offset: float,
    log_floor: float,
) -> Tensor:
    """As the reference."""
    batch, samples = waveform.shape
    taps = window.shape[0]
    # Samples from a frame's first tap to the one it is centred on. Where among the DFT's points its taps lie changes
    # no power: they come first.
    before = 0 if per_frame else n_fft // 2 - (n_fft - taps) // 2
    count = (samples - taps) // hop + 1 if per_frame else samples // hop + 1
    result = waveform.new_empty(batch, count, mel.shape[0])
    bands = _bands(mel)

    most = min(count, FRAMES_AT_A_TIME)
    points = waveform.new_zeros(most, n_fft)
    power = waveform.new_empty(most, n_fft // 2 + 1)
    centred = waveform.new_empty(most, taps) if per_frame else power
    ends = [samples] * batch if lengths is None else lengths.tolist()
    for row, end, energies in zip(waveform, ends, result, strict=True):
        # The frames that are not of padding alone.
        heard = min(count, -(-(end + before) // hop)) if end else 0
        energies[heard:] = math.log(max(log_offset, log_floor))
        if not heard:
            continue
        padded = waveform.new_zeros(max(before + end, (heard - 1) * hop + taps))
        if per_frame:
            padded[:end] = row[:end]
        else:
            padded[before] = row[0]
            torch.sub(row[1:end], row[: end - 1], alpha=preemphasis, out=padded[before + 1 : before + end])
        frames = padded.unfold(0, taps, hop)[:heard]
        for part, target in zip(frames.split(most), energies[:heard].split(most), strict=True):
            windowed = points[: len(part), :taps]
            if per_frame:
                level = torch.sub(part, part.mean(1, keepdim=True), out=centred[: len(part)])
                torch.mul(level, window, out=windowed)
                windowed[:, 1:].addcmul_(level[:, :-1], window[1:], value=-preemphasis)
                windowed[:, 0] *= 1 - preemphasis
            else:
                torch.mul(part, window, out=windowed)
            squares = torch.view_as_real(torch.fft.rfft(points[: len(part)])).square_()
            both = torch.add(squares[..., 0], squares[..., 1], out=power[: len(part)])
            for bins, frequencies, weights in bands:
                torch.mm(both[:, frequencies], weights, out=target[:, bins])
            target.add_(log_offset).clamp_(min=log_floor).log_()
    return result


def _bands(mel: Tensor) -> list[tuple[slice, slice, Tensor]]:
    """Some bins at a time, the frequencies that these weigh, and by how much (frequencies, bins)."""
    bands = []
    for first in range(0, mel.shape[0], BINS_AT_A_TIME):
        bins = slice(first, first + BINS_AT_A_TIME)
        weighed = mel[bins].any(0).nonzero()
        ends = (int(weighed[0]), int(weighed[-1]) + 1) if len(weighed) else (0, 1)
        bands.append((bins, slice(*ends), mel[bins, slice(*ends)].T))
    return bands
