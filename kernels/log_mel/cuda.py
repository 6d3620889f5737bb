"""log_mel by the extension, which serves CPU tensors only: csrc/log_mel.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspeech.kernels.log_mel import frame_count


def launch(
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
    batch, samples = waveform.shape
    frames = frame_count(samples, window.shape[0], n_fft, hop, per_frame)
    out = waveform.new_empty(batch, frames, mel.shape[0])
    torch.ops.fastspeech_csrc.log_mel(
        waveform.contiguous(),
        None if lengths is None else lengths.long().contiguous(),
        window.contiguous(),
        mel.contiguous(),
        n_fft,
        hop,
        preemphasis,
        per_frame,
        log_offset,
        log_floor,
        out,
    )
    return out
