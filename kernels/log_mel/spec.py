"""The record of log_mel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.log_mel import frame_count, log_mel
from fastspeech.kernels.spec import Case, Cost, OpSpec

COHERE = {"n_fft": 512, "taps": 400, "hop": 160, "bins": 128, "per_frame": False}
KALDI = {"n_fft": 512, "taps": 400, "hop": 160, "bins": 80, "per_frame": True}


def _bank(bins: int, frequencies: int) -> Tensor:
    """Triangles whose widths grow with their number, as those of a mel bank do."""
    # From one beyond the first frequency to one beyond the last, so that these have a weight too.
    edges = (torch.linspace(0, 1, bins + 2, dtype=torch.float64) ** 1.5 * (frequencies + 1) - 1)[:, None]
    k = torch.arange(frequencies, dtype=torch.float64)
    rising = (k - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - k) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0) / (edges[2:] - edges[:-2])


def _inputs(
    dtype: torch.dtype,
    generator: torch.Generator,
    batch: int,
    samples: int,
    n_fft: int,
    taps: int,
    hop: int,
    bins: int,
    per_frame: bool,
    lengths: tuple[int, ...] | None = None,
) -> dict[str, Any]:
    # Two tones over faint noise that stops half-way: the log shows every bit of error in the quiet bands and frames.
    t = torch.arange(samples, dtype=torch.float64)
    tones = 0.3 * torch.sin(0.11 * t) + 0.1 * torch.sin(0.7 * t)
    noise = 1e-4 * torch.randn((batch, samples), generator=generator, dtype=torch.float64)
    waveform = noise + tones * (t < samples // 2)
    # Hann's, without the zeros at its ends, which would hide the first and the last tap.
    hann = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(1, taps + 1, dtype=torch.float64) / (taps + 1))
    return {
        # Kaldi's features are of 16-bit samples.
        "waveform": (waveform * (2**15 if per_frame else 1)).to(dtype),
        "lengths": None if lengths is None else torch.tensor(lengths),
        "window": hann.to(dtype),
        "mel": _bank(bins, n_fft // 2 + 1).to(dtype),
        "n_fft": n_fft,
        "hop": hop,
        "preemphasis": 0.97,
        "per_frame": per_frame,
        "log_offset": 0.0 if per_frame else 2.0**-24,
        "log_floor": 2.0**-23 if per_frame else 0.0,
    }


def _padding(waveform: Tensor, lengths: Tensor | None, **rest: Any) -> dict[str, Tensor]:
    if lengths is None:
        return {}
    return {"waveform": torch.arange(waveform.shape[1]) >= lengths[:, None]}


def _cost(
    itemsize: int, batch: int, samples: int, n_fft: int, taps: int, hop: int, bins: int, per_frame: bool, **rest: Any
) -> Cost:
    frames = batch * frame_count(samples, taps, n_fft, hop, per_frame)
    # Window and emphasis 3 a tap, a real FFT 2.5 N log2 N (half of a complex one), power 3 a frequency, and the bank
    # as a sparse one: two triangles a frequency.
    frame = 3 * taps + 2.5 * n_fft * math.log2(n_fft) + (3 + 4) * (n_fft // 2 + 1)
    return Cost(bytes=itemsize * (batch * samples + frames * bins), flops=frames * frame)


SPEC = OpSpec(
    name="log_mel",
    summary="pre-emphasis, framing, window, DFT, power, mel bank and log of a waveform",
    call=log_mel,
    inputs=_inputs,
    cases=(
        Case("cohere", "ordinary", {"batch": 2, "samples": 3200, **COHERE, "lengths": (3200, 1777)}),
        Case("kaldi", "ordinary", {"batch": 2, "samples": 3200, **KALDI, "lengths": (3200, 1777)}),
        Case("full rows", "ordinary", {"batch": 2, "samples": 2000, **COHERE, "bins": 80}),
        Case(
            "odd sizes",
            "odd",
            {
                "batch": 3,
                "samples": 1237,
                "n_fft": 128,
                "taps": 101,
                "hop": 37,
                "bins": 19,
                "per_frame": False,
                "lengths": (1237, 5, 700),
            },
        ),
        Case(
            "odd kaldi",
            "odd",
            {
                "batch": 2,
                "samples": 1109,
                "n_fft": 256,
                "taps": 203,
                "hop": 71,
                "bins": 41,
                "per_frame": True,
                "lengths": (1109, 411),
            },
        ),
        Case("one sample", "edge", {"batch": 2, "samples": 1, **COHERE, "bins": 16, "lengths": (1, 0)}),
        Case("one kaldi frame", "edge", {"batch": 1, "samples": 400, **KALDI}),
        Case("an empty row", "edge", {"batch": 3, "samples": 900, **COHERE, "bins": 16, "lengths": (900, 0, 161)}),
        Case(
            "window of the DFT's size",
            "edge",
            {"batch": 1, "samples": 640, "n_fft": 64, "taps": 64, "hop": 32, "bins": 8, "per_frame": False},
        ),
        Case(
            "more bins than a tile",
            "edge",
            {"batch": 2, "samples": 2000, "n_fft": 512, "taps": 400, "hop": 160, "bins": 131, "per_frame": False},
        ),
        # The longest clips of Cohere ASR and of Speech2Text.
        Case("cohere 35 s", "model", {"batch": 2, "samples": 560000, **COHERE, "lengths": (560000, 400000)}),
        Case("speech2text 30 s", "model", {"batch": 1, "samples": 480000, **KALDI, "lengths": (480000,)}),
    ),
    cost=_cost,
    padding=_padding,
    batched=("waveform", "lengths"),
    dtypes=(torch.float32,),
)
