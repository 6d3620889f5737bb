"""Kyutai STT (kyutai/stt-2.6b-en-trfs, stt-1b-en_fr): a decoder that writes text beside the codes of an audio codec."""

from fastspeech.models.kyutai_stt.config import MimiConfig
from fastspeech.models.kyutai_stt.mimi import MimiModel, MimiState

__all__ = ["MimiConfig", "MimiModel", "MimiState"]
