"""Audio and text to the model's inputs, and the model's tokens back to text."""

from collections.abc import Sequence
from typing import Any

from fastspeech.audio.check import Audio
from fastspeech.checkpoints import BatchFeature, ProcessorMixin
from fastspeech.models.moonshine.features import Wav2Vec2FeatureExtractor


class Wav2Vec2Processor(ProcessorMixin):
    """A `Wav2Vec2FeatureExtractor` and a `Tokenizer`: what Moonshine's checkpoints name as their processor."""

    feature_extractor_class = Wav2Vec2FeatureExtractor
    feature_extractor: Wav2Vec2FeatureExtractor

    def __call__(
        self,
        audio: Audio | None = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str | None = False,
        return_tensors: str | None = None,
        text_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """The inputs of the model for one clip or a list of them, or the ids of texts.

        Args:
            audio: as the feature extractor takes it.
            text: what is said, for training: one a clip.
            padding, return_tensors: of the feature extractor and of the tokenizer.
            text_kwargs: further options of the tokenizer.
            **kwargs: further options of the feature extractor, `sampling_rate` among them.

        Returns:
            What the feature extractor returns, and where `text` is given labels, the ids that the tokenizer gives.
            Without audio what the tokenizer returns.

        Raises:
            ValueError: neither audio nor text; and as the feature extractor and the tokenizer do.
        """
        both: dict[str, Any] = {"padding": padding, "return_tensors": return_tensors}
        ids = BatchFeature() if text is None else self.tokenizer(text, **both | (text_kwargs or {}))
        if audio is None:
            if text is None:
                raise ValueError("give audio, text or both")
            return ids
        inputs = self.feature_extractor(audio, **both, **kwargs)
        if text is not None:
            inputs["labels"] = ids["input_ids"]
        return inputs
