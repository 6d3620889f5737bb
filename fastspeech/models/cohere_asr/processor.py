"""Audio and text to the model's inputs, and the model's tokens back to text."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fastspeech.audio.check import Audio, as_clips
from fastspeech.checkpoints import BatchFeature, ProcessorMixin, Tokenizer
from fastspeech.checkpoints.tokenizer_base import Text
from fastspeech.errors import AudioError
from fastspeech.models.cohere_asr.features import CohereAsrFeatureExtractor

LANGUAGES = frozenset({"ar", "de", "el", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "vi", "zh"})
"""The languages that the released model was trained for."""

_WITHOUT_SPACES = frozenset({"ja", "zh"})
_MOST_CHANNELS = 8


class CohereAsrProcessor(ProcessorMixin):
    """A `CohereAsrFeatureExtractor` and a `Tokenizer`."""

    feature_extractor_class = CohereAsrFeatureExtractor
    feature_extractor: CohereAsrFeatureExtractor

    def __init__(self, feature_extractor: CohereAsrFeatureExtractor, tokenizer: Tokenizer) -> None:
        super().__init__(feature_extractor, tokenizer)

    def get_decoder_prompt_ids(self, language: str, punctuation: bool = True) -> list[int]:
        """The ten tokens that tell the decoder what to write.

        Raises:
            ValueError: a language that the model does not know, or a tokenizer that lacks a token of the prompt.
        """
        if language not in LANGUAGES:
            known = ", ".join(sorted(LANGUAGES))
            raise ValueError(f"Unsupported language: {language!r}. Supported languages: {known}.")
        tokens = [
            "▁",
            "<|startofcontext|>",
            "<|startoftranscript|>",
            "<|emo:undefined|>",
            f"<|{language}|>",
            f"<|{language}|>",
            "<|pnc|>" if punctuation else "<|nopnc|>",
            "<|noitn|>",
            "<|notimestamp|>",
            "<|nodiarize|>",
        ]
        vocabulary = self.tokenizer.get_vocab()
        unknown = [token for token in tokens if token not in vocabulary]
        if unknown:
            raise ValueError(f"the tokenizer has no {', '.join(dict.fromkeys(unknown))}, which the prompt needs")
        return [vocabulary[token] for token in tokens]

    def __call__(
        self,
        audio: Audio,
        language: str | None = None,
        text: Text | Sequence[Text] | None = None,
        punctuation: bool = True,
        sampling_rate: int | None = None,
        *,
        return_tensors: str | None = "pt",
        is_split_into_words: bool = False,
        text_kwargs: dict[str, Any] | None = None,
        audio_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """The inputs of the model for one clip or a list of them, all in one language.

        Args:
            audio: a clip, or a list of clips: arrays, tensors or lists of floats, each (samples,), or (channels,
                samples) whose channels are averaged.
            language: one of `LANGUAGES`. English, with a warning, where it is not given, as in one of the page's
                examples. (transformers needs it.)
            text: what is said, for training: one a clip, or with `is_split_into_words` the words of each.
            punctuation: whether the model shall write capitals and punctuation.
            sampling_rate: of the clips, in Hz; it is compared with the model's. A warning where it is not given.
            return_tensors: "pt" or "np".
            text_kwargs: options of the tokenizer.
            audio_kwargs, **kwargs: options of the feature extractor.

        Returns:
            What the feature extractor returns, decoder_input_ids (rows, 10) int64, and where `text` is given labels
            (clips, tokens) int64, padded with the tokenizer's padding token and without an end token, as
            transformers has them.

        Raises:
            AudioError: wrong rate, or a clip that cannot be used; see the feature extractor.
            ValueError: an unknown language.
        """
        if language is None:
            language = "en"
            warnings.warn("the language is not stated: 'en' is assumed; pass language to be sure", stacklevel=2)
        prompt = self.get_decoder_prompt_ids(language, punctuation)
        single = isinstance(audio, (np.ndarray, torch.Tensor))
        clips = [_mono(clip, f"audio {i}") for i, clip in enumerate([audio] if single else as_clips(audio))]
        inputs = self.feature_extractor(clips, sampling_rate=sampling_rate, **kwargs, **(audio_kwargs or {}))
        device = inputs["input_features"].device
        inputs["decoder_input_ids"] = torch.tensor([prompt] * len(inputs["input_features"]), device=device)
        if text is not None:
            options: dict[str, Any] = {"padding": True, "padding_side": "right", "add_special_tokens": False}
            options |= {"is_split_into_words": is_split_into_words} | (text_kwargs or {})
            ids = self.tokenizer([text] if isinstance(text, str) else text, return_tensors="pt", **options)
            inputs["labels"] = ids["input_ids"].to(device)
        return inputs.convert_to_tensors(return_tensors, skip_tensor_conversion=("audio_chunk_index",))

    def decode(
        self,
        *args: Any,
        audio_chunk_index: Sequence[tuple[int, int | None]] | None = None,
        language: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """`Tokenizer.decode`: text of ids (n,), a list of texts of ids (rows, n).

        With the `audio_chunk_index` that the call returned, one text for each clip: the texts of its chunks in order,
        joined by a space, or by nothing in a language that has none. A clip whose chunks are all blank gives "".
        (transformers raises IndexError there.)

        Raises:
            ValueError: an `audio_chunk_index` without language or of another number of rows.
        """
        texts = self.tokenizer.decode(*args, **kwargs)
        if audio_chunk_index is None:
            return texts
        if language is None:
            raise ValueError("`language` must be provided when `audio_chunk_index` is given.")
        texts = [texts] if isinstance(texts, str) else texts
        return _joined(texts, audio_chunk_index, "" if language in _WITHOUT_SPACES else " ")


def _joined(texts: list[str], index: Sequence[tuple[int, int | None]], separator: str) -> list[str]:
    if len(texts) != len(index):
        raise ValueError(f"audio_chunk_index has {len(index)} rows, there are {len(texts)} texts")
    chunks: dict[int, list[tuple[int, str]]] = {}
    whole: dict[int, str] = {}
    for (clip, chunk), text in zip(index, texts, strict=True):
        if chunk is None:
            whole[clip] = text
        else:
            chunks.setdefault(clip, []).append((chunk, text))
    for clip, pieces in chunks.items():
        spoken = [text for _, text in sorted(pieces, key=lambda piece: piece[0]) if text.strip()]
        # The first keeps the space that the prompt's first token leaves before it.
        whole[clip] = separator.join([*(text.rstrip() for text in spoken[:1]), *(text.strip() for text in spoken[1:])])
    return [whole.get(clip, "") for clip in range(max(whole, default=-1) + 1)]


def _mono(clip: Any, name: str) -> Any:
    """A clip whose channels, where it has any, are averaged. What else may be wrong with it is left to others."""
    if isinstance(clip, np.ndarray):
        floating = np.issubdtype(clip.dtype, np.floating)
    else:
        floating = isinstance(clip, torch.Tensor) and clip.is_floating_point()
    if not floating or clip.ndim != 2:
        return clip
    if clip.shape[0] > _MOST_CHANNELS:
        raise AudioError(
            f"{name}: shape {tuple(clip.shape)} where (channels, samples) is meant; pass several clips as a list"
        )
    return clip.mean(0)
