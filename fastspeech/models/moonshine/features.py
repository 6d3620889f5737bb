"""Raw samples as a model's input, with transformers' name and defaults."""

import warnings
from typing import Any

import numpy as np

from fastspeech.audio.check import Audio, as_clips, check_samples, check_sampling_rate
from fastspeech.checkpoints import BatchFeature, FeatureExtractor
from fastspeech.checkpoints.feature_base import padded_length
from fastspeech.models.moonshine.encoder import MINIMUM_SAMPLES


class Wav2Vec2FeatureExtractor(FeatureExtractor):
    """Checks, normalises where asked to, and pads clips; Moonshine takes the samples as they are.

    Args:
        feature_size: 1, for the file only.
        sampling_rate: of the samples, in Hz.
        padding_value: of the samples behind a clip's end.
        return_attention_mask: whether calls return the mask by default.
        do_normalize: bring each clip to mean 0 and variance 1. Moonshine's checkpoints switch this off.
        padding_side: "right", for the file only.

    Raises:
        ValueError: padding on the left.
    """

    model_input_names = ["input_values", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        feature_size: int = 1,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        return_attention_mask: bool = False,
        do_normalize: bool = True,
        padding_side: str = "right",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if padding_side != "right":
            raise ValueError(f"padding_side must be 'right', got {padding_side!r}")
        self.feature_size = feature_size
        self.sampling_rate = sampling_rate
        self.padding_value = padding_value
        self.return_attention_mask = return_attention_mask
        self.do_normalize = do_normalize
        self.padding_side = padding_side

    @property
    def minimum_samples(self) -> int:
        """What Moonshine's first frame hears."""
        return MINIMUM_SAMPLES

    def __call__(
        self,
        raw_speech: Audio,
        padding: bool | str | None = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
        sampling_rate: int | None = None,
    ) -> BatchFeature:
        """The samples of one clip or a batch.

        Args:
            raw_speech: one mono clip (array, tensor or floats), or a list of them, or a 2-D array or tensor whose rows
                are clips. Floats in [-1, 1].
            padding: "longest" (or True), "max_length" to pad to `max_length` samples, or False: then each row has its
                own length.
            truncation: cut clips to `max_length` samples.
            pad_to_multiple_of: pad to a multiple of so many samples.
            return_attention_mask: by default what the settings say.
            return_tensors: "pt" or "np"; None for lists of arrays.
            sampling_rate: of the samples; it is compared with the model's. A warning where it is not given.

        Returns:
            input_values (rows, samples) float32 and, where asked for, attention_mask (rows, samples) int32, 1 at a
            clip's samples.

        Raises:
            AudioError: wrong rate; a clip that is empty, shorter than 895 samples, not finite, not mono, or of
                integers.
            ValueError: padding that makes no sense, or rows of unequal lengths for one tensor.
        """
        if sampling_rate is None:
            warnings.warn(
                f"the sampling rate is not stated: {self.sampling_rate} Hz is assumed; pass sampling_rate to be sure",
                stacklevel=2,
            )
        else:
            check_sampling_rate(sampling_rate, self.sampling_rate)
        checked = (check_samples(c, f"audio {i}", MINIMUM_SAMPLES) for i, c in enumerate(as_clips(raw_speech)))
        clips = [clip.cpu().numpy() for clip in checked]
        if truncation:
            clips = [clip[:max_length] for clip in clips]
        if self.do_normalize:
            clips = [(clip - clip.mean()) / np.sqrt(clip.var() + 1e-7) for clip in clips]
        sizes = [len(clip) for clip in clips]
        if (target := padded_length(sizes, padding, max_length, pad_to_multiple_of)) is not None:
            clips = [np.pad(c, (0, max(target - len(c), 0)), constant_values=self.padding_value) for c in clips]
        data: dict[str, Any] = {"input_values": clips}
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            pairs = zip(clips, sizes, strict=True)
            data["attention_mask"] = [(np.arange(len(clip)) < size).astype(np.int32) for clip, size in pairs]
        return BatchFeature(data, return_tensors)
