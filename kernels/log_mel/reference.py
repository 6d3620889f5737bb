"""Log-mel filter-bank energies of a waveform in plain PyTorch, in the two conventions the models were trained with."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
        frames = frames - frames.mean(-1, keepdim=True)
        frames = frames - preemphasis * torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    else:
        emphasised = torch.cat([waveform[:, :1], waveform[:, 1:] - preemphasis * waveform[:, :-1]], dim=1)
        if lengths is not None:
            emphasised = emphasised.masked_fill(padding, 0)
        left = (n_fft - window.shape[0]) // 2
        window = F.pad(window, (left, n_fft - window.shape[0] - left))
        frames = F.pad(emphasised, (n_fft // 2, n_fft // 2)).unfold(1, n_fft, hop)
    real, imaginary = torch.view_as_real(torch.fft.rfft(frames * window, n_fft)).unbind(-1)
    power = torch.addcmul(real.square(), imaginary, imaginary)
    return (power @ mel.T + log_offset).clamp(min=log_floor).log()
