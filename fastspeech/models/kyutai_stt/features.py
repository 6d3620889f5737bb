"""Raw samples as Kyutai STT's input, with transformers' name and defaults."""

import math
import warnings
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from fastspeech.audio.check import Audio, as_clips, check_samples, check_sampling_rate
from fastspeech.checkpoints import BatchFeature, FeatureExtractor
from fastspeech.checkpoints.feature_base import FEATURES_FILE, PROCESSOR_FILE, padded_length
from fastspeech.checkpoints.files import CONFIG_FILE, blaming, inside, read_json_if_any
from fastspeech.models.kyutai_stt.keys import is_released_config, silences

_LEAST_SILENCE_S = 1.0
"""Seconds of silence behind the delay, in which the last words come out."""


class KyutaiSpeechToTextFeatureExtractor(FeatureExtractor):
    """Checks clips, pads them to one length, and puts the silence around them in which the model begins and ends.

    Args:
        feature_size: 1, for the file only: the codec hears one channel.
        sampling_rate: of the samples, in Hz.
        padding_value: of the samples behind a clip's end.
        chunk_length_s, overlap: where both are given, clips are padded, or with `truncation` cut, to what whole chunks
            of so many seconds cover, each beginning (1 - overlap) of its length behind the one before. The checkpoints
            have neither.
        audio_delay_seconds: how far the model's text is behind the speech: 2.5 for stt-2.6b-en, 0.5 for stt-1b-en_fr.
            So much silence is put behind the clips, and always one second more.
        audio_silence_prefix_seconds: silence in front of the clips: 1 for stt-2.6b-en.

    Raises:
        ValueError: another number of channels, or a silence of less than nothing.
    """

    model_input_names = ["input_values", "padding_mask"]  # noqa: RUF012

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 24000,
        padding_value: float = 0.0,
        chunk_length_s: float | None = None,
        overlap: float | None = None,
        audio_delay_seconds: float = 0.0,
        audio_silence_prefix_seconds: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if feature_size != 1:
            raise ValueError(f"feature_size must be 1: the codec hears one channel, not {feature_size}")
        if min(audio_delay_seconds, audio_silence_prefix_seconds) < 0:
            raise ValueError(
                "audio_delay_seconds and audio_silence_prefix_seconds must not be negative, "
                f"got {audio_delay_seconds} and {audio_silence_prefix_seconds}"
            )
        self.feature_size = feature_size
        self.sampling_rate = sampling_rate
        self.padding_value = padding_value
        self.chunk_length_s = chunk_length_s
        self.overlap = overlap
        self.audio_delay_seconds = audio_delay_seconds
        self.audio_silence_prefix_seconds = audio_silence_prefix_seconds

    @property
    def silent_samples(self) -> tuple[int, int]:
        """Samples of silence in front of a clip and behind it."""
        behind = self.audio_delay_seconds + _LEAST_SILENCE_S
        return int(self.audio_silence_prefix_seconds * self.sampling_rate), int(behind * self.sampling_rate)

    @property
    def chunk_length(self) -> int | None:
        """Samples of a chunk."""
        return None if self.chunk_length_s is None else int(self.chunk_length_s * self.sampling_rate)

    @property
    def chunk_stride(self) -> int | None:
        """Samples from the beginning of a chunk to that of the next."""
        if self.chunk_length is None or self.overlap is None:
            return None
        return max(1, int((1.0 - self.overlap) * self.chunk_length))

    def split(self, samples: torch.Tensor) -> list[tuple[int | None, int, int]]:
        """One chunk, however long the clip (n,): the model hears it as a stream."""
        return [(None, 0, len(samples))]

    @classmethod
    def from_folder(cls, folder: Path, **overrides: Any) -> Self:
        """As `from_pretrained`, for a folder at hand; the original repositories have the silences in config.json."""
        config = read_json_if_any(folder, CONFIG_FILE)
        own = any(inside(folder, name).exists() for name in (FEATURES_FILE, PROCESSOR_FILE))
        if own or not is_released_config(config):
            return super().from_folder(folder, **overrides)
        with blaming(folder / CONFIG_FILE):
            return cls.from_dict(silences(config), **overrides)

    def __call__(
        self,
        raw_audio: Audio,
        padding: bool | str | None = None,
        truncation: bool | None = False,
        max_length: int | None = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """The samples of one clip or a batch, with silence around them.

        Args:
            raw_audio: one mono clip (array, tensor or floats), or a list of them, or a 2-D array or tensor whose rows
                are clips. Floats in [-1, 1].
            padding: "longest" (or True or None), "max_length" to pad to `max_length` samples, or False: then each row
                has its own length, and there is no mask.
            truncation: cut clips to `max_length` samples; only where `padding` is False or not given.
            max_length: in samples, the silence not counted.
            return_tensors: "pt" or "np"; None for lists of arrays.
            sampling_rate: of the samples; it is compared with the model's. A warning where it is not given.

        Returns:
            input_values (rows, 1, samples) float32 and padding_mask (rows, samples) int32, 1 at a clip's samples and 0
            in all silence.

        Raises:
            AudioError: wrong rate; a clip that is empty, not finite, not mono, or of integers.
            ValueError: padding or truncation that makes no sense, or rows of unequal lengths for one tensor.
        """
        if sampling_rate is None:
            warnings.warn(
                f"the sampling rate is not stated: {self.sampling_rate} Hz is assumed; pass sampling_rate to be sure",
                stacklevel=2,
            )
        else:
            check_sampling_rate(sampling_rate, self.sampling_rate)
        if padding and truncation:
            raise ValueError("padding and truncation exclude each other")
        clips = [check_samples(c, f"audio {i}").cpu().numpy() for i, c in enumerate(as_clips(raw_audio))]
        sizes = [len(clip) for clip in clips]
        padding = True if padding is None else padding
        if max_length is None and (covered := self._covered(sizes, bool(padding), bool(truncation))) is not None:
            max_length, padding = covered, padding if truncation else "max_length"
        if truncation:
            if max_length is None:
                raise ValueError("truncation needs max_length")
            clips = [clip[:max_length] for clip in clips]
            sizes = [len(clip) for clip in clips]
        target = padded_length(sizes, padding, max_length, None)
        front, behind = self.silent_samples
        values, masks = [], []
        for clip, size in zip(clips, sizes, strict=True):
            length = size if target is None else max(target, size)
            row = np.zeros((1, front + length + behind), np.float32)
            row[0, front : front + size] = clip
            row[0, front + size : front + length] = self.padding_value
            mask = np.zeros(row.shape[1], np.int32)
            mask[front : front + size] = 1
            values.append(row)
            masks.append(mask)
        data = {"input_values": values} | ({} if target is None else {"padding_mask": masks})
        return BatchFeature(data, return_tensors)

    def _covered(self, sizes: list[int], padding: bool, truncation: bool) -> int | None:
        """The samples of whole chunks in the shortest clip, or over the longest; None where there are no chunks."""
        length, stride = self.chunk_length, self.chunk_stride
        if length is None or stride is None or not (padding or truncation):
            return None
        chunks = min(sizes) // stride if truncation else math.ceil(max(sizes) / stride)
        return (chunks - 1) * stride + length
