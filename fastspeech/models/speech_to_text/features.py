"""Speech2Text's features: Kaldi's log-mel filter banks, normalised over each utterance, with transformers' names."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastspeech.audio.check import Audio, as_clips, check_samples, check_sampling_rate
from fastspeech.audio.mel import kaldi_mel_filters
from fastspeech.checkpoints import BatchFeature, FeatureExtractor
from fastspeech.checkpoints.feature_base import padded_length
from fastspeech.kernels import cmvn, log_mel

FRAME = 400
HOP = 160
N_FFT = 512

INTEGER_SCALE = 2.0**15
"""Kaldi's samples are 16-bit integers."""

PREEMPHASIS = 0.97
LOG_FLOOR = 1.1920929e-07
VARIANCE_FLOOR = 1e-10
"""fairseq's. transformers has none: a feature that never changes, as in silence, becomes infinite there."""


class Speech2TextFeatureExtractor(FeatureExtractor):
    """Samples to log-mel filter banks: frames of 400 samples every 160, from 20 Hz to Nyquist.

    Args:
        feature_size, num_mel_bins: mel bins; the first is for the file only.
        sampling_rate: of the samples, in Hz.
        padding_value: of the frames behind a clip's end.
        dither: standard deviation of the Gaussian noise added, for samples of 16-bit scale; from torch's generator.
            It is added to the samples, where transformers adds it to each frame.
        do_ceptral_normalize: whether features are normalised over the utterance.
        normalize_means, normalize_vars: to mean 0, and to variance 1.
        padding_side: "right", for the file only.
        return_attention_mask: whether calls return the mask by default.

    Raises:
        ValueError: padding on the left.
    """

    model_input_names = ["input_features", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16000,
        num_mel_bins: int = 80,
        padding_value: float = 0.0,
        dither: float = 0.0,
        do_ceptral_normalize: bool = True,
        normalize_means: bool = True,
        normalize_vars: bool = True,
        padding_side: str = "right",
        return_attention_mask: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if padding_side != "right":
            raise ValueError(f"padding_side must be 'right', got {padding_side!r}")
        self.feature_size = feature_size
        self.sampling_rate = sampling_rate
        self.num_mel_bins = num_mel_bins
        self.padding_value = padding_value
        self.dither = dither
        self.do_ceptral_normalize = do_ceptral_normalize
        self.normalize_means = normalize_means
        self.normalize_vars = normalize_vars
        self.padding_side = padding_side
        self.return_attention_mask = return_attention_mask
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def minimum_samples(self) -> int:
        """One frame."""
        return FRAME

    def __call__(
        self,
        raw_speech: Audio,
        padding: bool | str | None = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
        return_attention_mask: bool | None = None,
        device: str | torch.device | None = "cpu",
        padding_value: float | None = None,
    ) -> BatchFeature:
        """Features of one clip or a batch.

        Args:
            raw_speech: one mono clip (array, tensor or floats), or a list of them, or a 2-D array or tensor whose rows
                are clips. Floats in [-1, 1].
            padding: "longest" (or True), "max_length" to pad to `max_length` frames, or False: then each row has its
                own length.
            truncation: cut rows to `max_length` frames, before they are normalised.
            pad_to_multiple_of: pad (and cut) to a multiple of so many frames.
            return_tensors: "np" for NumPy arrays, "pt" for tensors; without it tensors too, and lists of them where
                rows are of unequal lengths.
            sampling_rate: of the samples; it is compared with the model's. A warning where it is not given.
            return_attention_mask: by default what the settings say.
            device: where features are computed and returned.
            padding_value: of the frames behind a clip's end; by default what the settings say. (transformers takes
                the argument and ignores it.)

        Returns:
            input_features (rows, frames, num_mel_bins) float32, frames = (samples - 400) // 160 + 1, and where asked
            for attention_mask (rows, frames) int32, 1 at a clip's frames.

        Raises:
            AudioError: wrong rate; a clip that is empty, shorter than 400 samples, not finite, not mono, or of
                integers.
            ValueError: padding or truncation that makes no sense, or rows of unequal lengths for one tensor.
        """
        if sampling_rate is None:
            warnings.warn(
                f"the sampling rate is not stated: {self.sampling_rate} Hz is assumed; pass sampling_rate to be sure",
                stacklevel=2,
            )
        else:
            check_sampling_rate(sampling_rate, self.sampling_rate)
        rows = [check_samples(clip, f"audio {i}", FRAME) for i, clip in enumerate(as_clips(raw_speech))]
        sizes = [(len(row) - FRAME) // HOP + 1 for row in rows]
        if truncation:
            if max_length is None:
                raise ValueError("truncation needs a max_length")
            most = -(-max_length // (pad_to_multiple_of or 1)) * (pad_to_multiple_of or 1)
            sizes = [min(size, most) for size in sizes]
        target = padded_length(sizes, padding, max_length, pad_to_multiple_of)
        widths = sizes if target is None else [max(size, target) for size in sizes]

        features = self._energies(rows, torch.device(device or "cpu"))
        # Negative padding cuts: frames of longer clips, and those that truncation leaves out.
        if more := max(widths) - features.shape[1]:
            features = F.pad(features, (0, 0, 0, more))
        lengths = torch.tensor(sizes, device=features.device)
        valid = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
        if self.do_ceptral_normalize:
            features = self._normalised(features, lengths, valid[..., None])
        filling = self.padding_value if padding_value is None else padding_value
        if min(sizes) < features.shape[1]:
            features = features.masked_fill_(~valid[..., None], filling)

        data: dict[str, Any] = {"input_features": features}
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            data["attention_mask"] = valid.int()
        if len(set(widths)) > 1:
            unequal = {name: [row[:width] for row, width in zip(data[name], widths, strict=True)] for name in data}
            return BatchFeature(unequal, return_tensors)
        return BatchFeature(data, return_tensors)

    def _energies(self, rows: list[Tensor], device: torch.device) -> Tensor:
        """Log-mel energies (rows, frames, bins) of clips, frames being those of the longest."""
        waveform = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device).mul_(INTEGER_SCALE)
        if self.dither > 0:
            waveform = waveform + self.dither * torch.randn_like(waveform)
        if device not in self._constants:
            bank = kaldi_mel_filters(self.num_mel_bins, N_FFT, self.sampling_rate)
            self._constants[device] = povey_window(FRAME).to(device), bank.to(device)
        window, bank = self._constants[device]
        return log_mel(waveform, None, window, bank, N_FFT, HOP, PREEMPHASIS, per_frame=True, log_floor=LOG_FLOOR)

    def _normalised(self, features: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        if self.normalize_means and self.normalize_vars:
            return cmvn(features, lengths, 0, 0.0, VARIANCE_FLOOR)
        count = lengths[:, None, None]
        mean = (features * valid).sum(1, keepdim=True) / count
        if self.normalize_means:
            return features - mean
        if self.normalize_vars:
            variance = ((features - mean).square() * valid).sum(1, keepdim=True) / count
            return features / variance.clamp(min=VARIANCE_FLOOR).sqrt()
        return features


def povey_window(size: int) -> Tensor:
    """(size,) float32: Kaldi's window, a symmetric Hann window to the power of 0.85."""
    return torch.hann_window(size, periodic=False, dtype=torch.float64).pow(0.85).float()
