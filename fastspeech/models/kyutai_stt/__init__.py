"""Kyutai STT (kyutai/stt-2.6b-en-trfs, stt-1b-en_fr): a decoder that writes text beside the codes of an audio codec."""

from fastspeech.models.kyutai_stt.config import KyutaiSpeechToTextConfig, MimiConfig
from fastspeech.models.kyutai_stt.mimi import MimiModel, MimiState
from fastspeech.models.kyutai_stt.model import (
    KyutaiSpeechToTextForConditionalGeneration,
    KyutaiSpeechToTextModel,
    KyutaiSpeechToTextPreTrainedModel,
)

__all__ = [
    "KyutaiSpeechToTextConfig",
    "KyutaiSpeechToTextForConditionalGeneration",
    "KyutaiSpeechToTextModel",
    "KyutaiSpeechToTextPreTrainedModel",
    "MimiConfig",
    "MimiModel",
    "MimiState",
]
