"""Audio and text to the model's inputs, and the model's tokens back to text."""

from collections.abc import Sequence
from typing import Any

from fastspeech.audio.check import Audio
from fastspeech.checkpoints import BatchFeature, ProcessorMixin
from fastspeech.models.kyutai_stt.features import KyutaiSpeechToTextFeatureExtractor
from fastspeech.models.kyutai_stt.tokenizer import KyutaiSpeechToTextTokenizer


class KyutaiSpeechToTextProcessor(ProcessorMixin):
    """A `KyutaiSpeechToTextFeatureExtractor` and a tokenizer."""

    feature_extractor_class = KyutaiSpeechToTextFeatureExtractor
    tokenizer_class = KyutaiSpeechToTextTokenizer
    feature_extractor: KyutaiSpeechToTextFeatureExtractor

    def __call__(
        self,
        images: Audio | None = None,
        text: str | Sequence[str] | None = None,
        videos: None = None,
        audio: Audio | None = None,
        *,
        sampling_rate: int | None = None,
        return_tensors: str | None = "pt",
        text_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """The inputs of the model for one clip or a list of them, and the ids of texts.

        Args:
            images: the audio, where it is given without a name, as in the examples of transformers' page: this is the
                first of the arguments that its processors share. (transformers 5 takes it for images and returns
                nothing.)
            text: texts to be turned into ids.
            videos: must be None.
            audio: as the feature extractor takes it.
            sampling_rate: of the audio; it is compared with the model's. By default it is taken to be that.
            return_tensors: "pt" or "np" for tensors, None for lists.
            text_kwargs: further options of the tokenizer.
            **kwargs: further options of the feature extractor.

        Returns:
            What the feature extractor returns, and where `text` is given what the tokenizer does.

        Raises:
            ValueError: neither audio nor text, or audio twice; and as the feature extractor and the tokenizer do.
            TypeError: an option that is not known.
        """
        if videos is not None or (images is not None and audio is not None):
            raise ValueError("give the audio, once, and no videos")
        audio = images if audio is None else audio
        if audio is None and text is None:
            raise ValueError("give audio, text or both")
        inputs = BatchFeature()
        if text is not None:
            inputs.update(self.tokenizer(text, **{"return_tensors": return_tensors} | (text_kwargs or {})))
        if audio is not None:
            rate = self.feature_extractor.sampling_rate if sampling_rate is None else sampling_rate
            heard = self.feature_extractor(audio, return_tensors=return_tensors, sampling_rate=rate, **kwargs)
            inputs.update(heard)
        return inputs
