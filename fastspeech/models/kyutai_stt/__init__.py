"""Kyutai STT (kyutai/stt-2.6b-en-trfs, stt-1b-en_fr): a decoder that writes text beside the codes of an audio codec."""

from fastspeech.models.kyutai_stt.config import KyutaiSpeechToTextConfig, MimiConfig
from fastspeech.models.kyutai_stt.features import KyutaiSpeechToTextFeatureExtractor
from fastspeech.models.kyutai_stt.mimi import MimiModel, MimiState
from fastspeech.models.kyutai_stt.model import (
    KyutaiSpeechToTextForConditionalGeneration,
    KyutaiSpeechToTextModel,
    KyutaiSpeechToTextPreTrainedModel,
)
from fastspeech.models.kyutai_stt.processor import KyutaiSpeechToTextProcessor
from fastspeech.models.kyutai_stt.tokenizer import KyutaiSpeechToTextTokenizer

__all__ = [
    "KyutaiSpeechToTextConfig",
    "KyutaiSpeechToTextFeatureExtractor",
    "KyutaiSpeechToTextForConditionalGeneration",
    "KyutaiSpeechToTextModel",
    "KyutaiSpeechToTextPreTrainedModel",
    "KyutaiSpeechToTextProcessor",
    "KyutaiSpeechToTextTokenizer",
    "MimiConfig",
    "MimiModel",
    "MimiState",
]
