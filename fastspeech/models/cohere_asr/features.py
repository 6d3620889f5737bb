"""CohereAsr's log-mel features (NeMo's AudioToMelSpectrogramPreprocessor), with transformers' names and defaults."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from fastspeech.audio.check import Audio, as_clips, check_samples, check_sampling_rate
from fastspeech.audio.mel import slaney_mel_filters
from fastspeech.audio.split import split_at_quiet
from fastspeech.checkpoints import BatchFeature, FeatureExtractor
from fastspeech.checkpoints.files import locate
from fastspeech.checkpoints.weights import open_weights
from fastspeech.errors import CheckpointError
from fastspeech.kernels import cmvn, log_mel
from fastspeech.models.cohere_asr.keys import MEL_FILTERS

LOG_GUARD = 2.0**-24
"""Added to an energy before its logarithm."""

EPSILON = 1e-5
"""Added to the standard deviation that features are divided by."""


class CohereAsrFeatureExtractor(FeatureExtractor):
    """Samples to normalised log-mel features; recordings that are too long are cut at quiet places.

    Args:
        feature_size: mel bins.
        sampling_rate: of the samples, in Hz.
        hop_length, n_fft, win_length: the frames of the short-time Fourier transform, in samples.
        preemphasis: coefficient of the filter x[t] - p * x[t - 1]; 0 or None for none.
        padding_value: kept for the file only: padding is silence.
        dither: amount of noise added, seeded by the length of a clip, so that it does not depend on the batch; the
            same noise as transformers'. 0 for none.
        max_audio_clip_s, overlap_chunk_second, min_energy_window_samples: how recordings are cut, see
            `fastspeech.audio.split.split_at_quiet`. The chunks do not overlap.
        mel_filters: "slaney" for the computed bank, as transformers uses, or a bank (feature_size, n_fft // 2 + 1).
            `from_pretrained` also takes "checkpoint", for the bank that was trained with the released model.
    """

    model_input_names = ["input_features", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = 16000,
        hop_length: int = 160,
        n_fft: int = 512,
        win_length: int = 400,
        preemphasis: float | None = 0.97,
        padding_value: float = 0.0,
        dither: float = 1e-5,
        max_audio_clip_s: float = 35.0,
        overlap_chunk_second: float = 5.0,
        min_energy_window_samples: int = 1600,
        mel_filters: str | Tensor | Sequence[Sequence[float]] = "slaney",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.feature_size = feature_size
        self.sampling_rate = sampling_rate
        self.hop_length = hop_length
        self.n_fft = n_fft
        self.win_length = win_length
        self.preemphasis = preemphasis
        self.padding_value = padding_value
        self.dither = dither
        self.max_audio_clip_s = max_audio_clip_s
        self.overlap_chunk_second = overlap_chunk_second
        self.min_energy_window_samples = min_energy_window_samples
        self._mel_name = mel_filters if isinstance(mel_filters, str) else None
        self._bank = self._choose_bank(mel_filters)
        self._constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def mel_filters(self) -> Tensor:
        """The bank in use, (feature_size, n_fft // 2 + 1) float32."""
        return self._bank

    @property
    def minimum_samples(self) -> int:
        """Two frames: a standard deviation needs them."""
        return 2 * self.hop_length

    def split(self, samples: Tensor) -> list[tuple[int | None, int, int]]:
        """The chunks (index, start, end) that a clip (n,) is cut into; index None where it is short enough."""
        return split_at_quiet(
            samples,
            self.sampling_rate,
            self.max_audio_clip_s,
            self.overlap_chunk_second,
            self.min_energy_window_samples,
        )

    def __call__(
        self,
        raw_speech: Audio,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        padding: bool | str | None = "longest",
        max_length: int | None = None,
        sampling_rate: int | None = None,
        do_normalize: bool | None = None,
        device: str | torch.device | None = "cpu",
        return_token_timestamps: bool | None = None,
        padding_value: float | None = None,
    ) -> BatchFeature:
        """Features of one clip or a batch.

        Args:
            raw_speech: one mono clip (array, tensor or floats), or a list of them, or a 2-D array or tensor whose rows
                are clips. Floats in [-1, 1].
            truncation: cut clips to `max_length` samples.
            pad_to_multiple_of: pad to a multiple of so many samples.
            return_tensors: "np" for NumPy arrays; torch tensors otherwise.
            padding: "longest" (or True), "max_length" to pad to `max_length` samples, or False where all have one
                length.
            sampling_rate: of the samples; it is compared with the model's. A warning where it is not given.
            device: where features are computed and returned.
            return_attention_mask, do_normalize, return_token_timestamps: without effect, as in transformers.
            padding_value: of the features behind a row's end, by default 0. (transformers takes the argument and
                ignores it.)

        Returns:
            input_features (rows, frames, feature_size) float32; attention_mask (rows, frames)
            bool; audio_chunk_index, a list of (clip, chunk) for each row, chunk None where the clip was not cut.
            frames = samples // hop_length + 1, of which samples // hop_length are valid.

        Raises:
            AudioError: wrong rate; a clip that is empty, shorter than two hops, not finite, not mono, or of integers.
            ValueError: padding that does not make rows equal.
        """
        if sampling_rate is None:
            warnings.warn(
                f"the sampling rate is not stated: {self.sampling_rate} Hz is assumed; pass sampling_rate to be sure",
                stacklevel=2,
            )
        else:
            check_sampling_rate(sampling_rate, self.sampling_rate)
        rows: list[Tensor] = []
        index: list[tuple[int, int | None]] = []
        for i, samples in enumerate(as_clips(raw_speech)):
            clip = check_samples(samples, f"audio {i}", self.minimum_samples)
            for chunk, start, end in self.split(clip):
                rows.append(clip[start:end])
                index.append((i, chunk))
        if truncation and max_length is not None:
            rows = [row[:max_length] for row in rows]
        waveform = self._padded(rows, padding, max_length, pad_to_multiple_of).to(device or "cpu")
        features, mask = self._features(waveform, [len(row) for row in rows])
        if padding_value:
            features = features.masked_fill(~mask[..., None], padding_value)
        return BatchFeature(
            {"input_features": features, "attention_mask": mask, "audio_chunk_index": index},
            return_tensors,
            skip_tensor_conversion=("audio_chunk_index",),
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any) -> Self:
        """As `FeatureExtractor.from_pretrained`; `mel_filters="checkpoint"` takes the bank stored with the weights.

        Raises:
            CheckpointError: no readable settings, or no bank where it is asked for.
        """
        if kwargs.get("mel_filters") == "checkpoint":
            source = {name: kwargs[name] for name in _SOURCE_ARGUMENTS if name in kwargs}
            kwargs["mel_filters"] = _stored_bank(locate(pretrained_model_name_or_path, weights=True, **source))
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The settings; a bank that cannot be computed from them is among them, as rows of floats."""
        values = super().to_dict()
        return values if self._mel_name == "slaney" else values | {"mel_filters": self._bank.tolist()}

    def _choose_bank(self, mel_filters: str | Tensor | Sequence[Sequence[float]]) -> Tensor:
        if isinstance(mel_filters, str):
            if mel_filters != "slaney":
                raise ValueError(
                    f"mel_filters must be 'slaney' or a bank, or 'checkpoint' in from_pretrained; got {mel_filters!r}"
                )
            return slaney_mel_filters(self.feature_size, self.n_fft, self.sampling_rate)
        bank = torch.as_tensor(mel_filters, dtype=torch.float32)
        shape = (self.feature_size, self.n_fft // 2 + 1)
        if bank.shape != shape:
            raise ValueError(f"mel_filters must have shape {shape}, got {tuple(bank.shape)}")
        return bank

    def _padded(
        self, rows: list[Tensor], padding: bool | str | None, max_length: int | None, multiple: int | None
    ) -> Tensor:
        """(rows, samples), zeros behind each row's end, with the dither."""
        longest = max(len(row) for row in rows)
        if padding == "max_length":
            if max_length is None or max_length < longest:
                raise ValueError(f"padding='max_length' needs a max_length of {longest} samples or more")
            longest = max_length
        elif padding not in (True, False, None, "longest", "do_not_pad"):
            raise ValueError(f"padding must be 'longest', 'max_length' or False, got {padding!r}")
        if multiple:
            longest = -(-longest // multiple) * multiple
        if padding in (False, None, "do_not_pad") and any(len(row) != longest for row in rows):
            raise ValueError("clips of different lengths need padding='longest'")
        waveform = rows[0].new_empty(len(rows), longest)
        generator = torch.Generator()
        noise = torch.empty(0)
        for target, row in zip(waveform, rows, strict=True):
            target[len(row) :] = 0
            target = target[: len(row)]
            if self.dither > 0:
                if len(noise) != len(row):
                    noise = torch.randn(len(row), generator=generator.manual_seed(len(row)))
                torch.add(row, noise.to(row.device), alpha=self.dither, out=target)
            else:
                target.copy_(row)
        return waveform

    def _features(self, waveform: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Features (rows, frames, feature_size) and mask (rows, frames) of rows (rows, samples) of these sizes."""
        device = waveform.device
        if device not in self._constants:
            window = torch.hann_window(self.win_length, periodic=False)
            self._constants[device] = window.to(device), self._bank.to(device)
        energies = log_mel(
            waveform,
            None if min(sizes) == waveform.shape[1] else torch.tensor(sizes, device=device),
            *self._constants[device],
            self.n_fft,
            self.hop_length,
            self.preemphasis or 0.0,
            log_offset=LOG_GUARD,
        )
        valid = torch.tensor([size // self.hop_length for size in sizes], device=device)
        mask = torch.arange(energies.shape[1], device=device) < valid[:, None]
        return cmvn(energies, valid, 1, EPSILON, 0.0), mask


_SOURCE_ARGUMENTS = ("revision", "cache_dir", "force_download", "local_files_only", "token")


def _stored_bank(folder: Path) -> Tensor:
    stored = open_weights(folder).get(MEL_FILTERS)
    if stored is None:
        raise CheckpointError(f"{folder} holds no {MEL_FILTERS}; use mel_filters='slaney'")
    return stored.read().float()[0]
