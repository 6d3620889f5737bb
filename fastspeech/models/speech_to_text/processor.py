"""Audio and text to the model's inputs, and the model's tokens back to text."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastspeech.checkpoints import BatchFeature, ProcessorMixin
from fastspeech.models.speech_to_text.features import Speech2TextFeatureExtractor
from fastspeech.models.speech_to_text.tokenizer import Speech2TextTokenizer


class Speech2TextProcessor(ProcessorMixin):
    """A `Speech2TextFeatureExtractor` and a `Speech2TextTokenizer`."""

    feature_extractor_class = Speech2TextFeatureExtractor
    tokenizer_class = Speech2TextTokenizer
    feature_extractor: Speech2TextFeatureExtractor
    tokenizer: Speech2TextTokenizer

    def __init__(self, feature_extractor: Speech2TextFeatureExtractor, tokenizer: Speech2TextTokenizer) -> None:
        super().__init__(feature_extractor, tokenizer)
        self._as_target = False

    def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
        """The inputs of the model for a clip or a list of them, the ids of texts, or both.

        Args:
            *args: the audio, then further arguments of the feature extractor.
            audio: the audio by name; transformers 4 also calls it `raw_speech`.
            text: what is said (or its translation), for training: one a clip.
            text_kwargs: options of the tokenizer where both audio and text are given.
            **kwargs: options of the feature extractor where there is audio, `sampling_rate` among them, else of the
                tokenizer. `padding` and `return_tensors` go to both.

        Returns:
            What the feature extractor returns, with `text` also labels, its ids; without audio what the tokenizer
            returns.

        Raises:
            ValueError: neither audio nor text; and as the feature extractor and the tokenizer do.
        """
        if self._as_target:
            return self.tokenizer(*args, **kwargs)
        if "raw_speech" in kwargs:
            warnings.warn("raw_speech is the former name of audio", FutureWarning, stacklevel=2)
            kwargs["audio"] = kwargs.pop("raw_speech")
        audio, text = kwargs.pop("audio", None), kwargs.pop("text", None)
        text_kwargs = kwargs.pop("text_kwargs", {})
        if args:
            audio, args = args[0], args[1:]
        if audio is None and text is None:
            raise ValueError("give audio, text or both")
        if audio is None:
            return self.tokenizer(text, **kwargs | text_kwargs)
        inputs = self.feature_extractor(audio, *args, **kwargs)
        if text is not None:
            both = {name: kwargs[name] for name in ("padding", "return_tensors") if name in kwargs}
            inputs["labels"] = self.tokenizer(text, **both | text_kwargs)["input_ids"]
        return inputs

    @contextmanager
    def as_target_processor(self) -> Iterator[None]:
        """Within this context a call goes to the tokenizer: how transformers 4 prepared labels before `text` came."""
        warnings.warn("as_target_processor is deprecated: give text= to the processor", FutureWarning, stacklevel=3)
        self._as_target = True
        try:
            yield
        finally:
            self._as_target = False
