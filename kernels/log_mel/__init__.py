"""log_mel: pre-emphasis, framing, window, DFT, power, mel bank and log of a waveform, in one pass."""

from __future__ import annotations

from torch import Tensor

from fastspeech.kernels import checks
from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.log_mel.reference import log_mel as _reference
from fastspeech.kernels.op import Op


def frame_count(samples: int, window: int, n_fft: int, hop: int, per_frame: bool) -> int:
    """Frames that `log_mel` gives for a row of `samples` samples."""
    return (samples - window) // hop + 1 if per_frame else (samples + n_fft // 2 * 2 - n_fft) // hop + 1


def _fake(
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
    frames = frame_count(waveform.shape[1], window.shape[0], n_fft, hop, per_frame)
    return waveform.new_empty(waveform.shape[0], frames, mel.shape[0])


def _triton_limits(
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
) -> str | None:
    if waveform.element_size() != 4:
        return f"{waveform.dtype} is served by the reference: a log spectrum needs float32"
    if n_fft not in (64, 128, 256, 512):
        return f"a DFT of {n_fft} points; those of 64, 128, 256 and 512 are made of 32 lanes times a power of two"
    return None


def _cuda_limits(
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
) -> str | None:
    if waveform.element_size() != 4:
        return f"{waveform.dtype} is served by the reference: a log spectrum needs float32"
    if n_fft & (n_fft - 1):
        return f"a DFT of {n_fft} points, which are no power of two"
    return None


_op = Op(
    _reference,
    _fake,
    (
        Implementation("triton", "fastspeech.kernels.log_mel.triton", _triton_limits),
        Implementation("cuda", "fastspeech.kernels.log_mel.cuda", _cuda_limits, on_cpu=True, on_cuda=False),
    ),
)


def log_mel(
    waveform: Tensor,
    lengths: Tensor | None,
    window: Tensor,
    mel: Tensor,
    n_fft: int,
    hop: int,
    preemphasis: float = 0.97,
    per_frame: bool = False,
    log_offset: float = 0.0,
    log_floor: float = 0.0,
) -> Tensor:
    """Log-mel energies log(max(mel @ |DFT(frame * window)|^2 + log_offset, log_floor)).

    With `per_frame` False (Cohere ASR; NeMo's preprocessor) the utterance y[0] = x[0], y[t] = x[t] - p * x[t - 1] is
    emphasised, zeroed at and behind its length, and frame i is centred on sample i * hop, with zeros beyond both ends.
    With `per_frame` True (Speech2Text; Kaldi's compute-fbank-feats) frame i starts at sample i * hop, has its mean
    removed, is emphasised within itself (y[0] = (1 - p) * x[0]), windowed, and zero-padded on the right to n_fft.

    Args:
        waveform: (batch, samples), float32 (float64 for an oracle); NaN behind a row's length has no effect.
        lengths: (batch,) int32 or int64, valid samples of each row; None where all are valid.
        window: (taps,), 0 < taps <= n_fft; centred in the frame where `per_frame` is False.
        mel: (bins, n_fft // 2 + 1), the filter bank.
        n_fft: points of the DFT, even; hop: samples from one frame to the next.

    Returns:
        (batch, frames, bins), contiguous, in the waveform's dtype; frames = samples // hop + 1, or
        (samples - taps) // hop + 1 with `per_frame`.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit; a waveform shorter than one frame with
            `per_frame`; an empty one without.
    """
    checks.rank("waveform", waveform, 2, "(batch, samples)")
    checks.rank("window", window, 1, "(taps,)")
    if n_fft % 2 or not 0 < window.shape[0] <= n_fft:
        raise ValueError(f"n_fft must be even and at least the window's taps, got {n_fft} for {window.shape[0]}")
    checks.rank("mel", mel, 2, "(bins, n_fft // 2 + 1)")
    checks.shape("mel", mel, (mel.shape[0], n_fft // 2 + 1), "(bins, n_fft // 2 + 1)")
    checks.floating(waveform=waveform, window=window, mel=mel)
    checks.lengths(lengths, waveform.shape[0], waveform.device)
    if log_offset <= 0 and log_floor <= 0:
        raise ValueError("the log of an empty bin is -inf: give log_offset or log_floor")
    shortest = window.shape[0] if per_frame else 1
    if waveform.shape[1] < shortest:
        raise ValueError(f"a row has {waveform.shape[1]} samples, at least {shortest} are needed")
    return _op(waveform, lengths, window, mel, n_fft, hop, preemphasis, per_frame, log_offset, log_floor)
