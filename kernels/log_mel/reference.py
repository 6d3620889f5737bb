"""Log-mel filter-bank energies of a waveform in plain PyTorch, in the two conventions the models were trained with."""

import torch
import torch.nn.functional as F
from torch import Tensor

FRAMES_AT_A_TIME = 512
"""Whose samples, spectra and energies take about 4 MB on the way."""


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
    if lengths is not None:
        padding = torch.arange(waveform.shape[1], device=waveform.device) >= lengths[:, None]
        waveform = waveform.masked_fill(padding, 0)
    if per_frame:
        frames = waveform.unfold(1, window.shape[0], hop)
    else:
        emphasised = torch.cat([waveform[:, :1], waveform[:, 1:] - preemphasis * waveform[:, :-1]], dim=1)
        if lengths is not None:
            emphasised = emphasised.masked_fill(padding, 0)
        left = (n_fft - window.shape[0]) // 2
        window = F.pad(window, (left, n_fft - window.shape[0] - left))
        frames = F.pad(emphasised, (n_fft // 2, n_fft // 2)).unfold(1, n_fft, hop)

    def log_energies(frames: Tensor) -> Tensor:
        if per_frame:
            frames = frames - frames.mean(-1, keepdim=True)
            frames = frames - preemphasis * torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
        real, imaginary = torch.view_as_real(torch.fft.rfft(frames * window, n_fft)).unbind(-1)
        power = torch.addcmul(real.square(), imaginary, imaginary)
        return (power @ mel.T + log_offset).clamp(min=log_floor).log()

    if waveform.device.type != "cpu" or torch.compiler.is_compiling():
        return log_energies(frames)
    # Some frames at a time, whose spectra a CPU's cache holds.
    parts = frames.split(max(16, FRAMES_AT_A_TIME // max(1, len(frames))), 1)
    return torch.cat([log_energies(part) for part in parts], 1)
