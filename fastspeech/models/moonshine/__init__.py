"""Moonshine (UsefulSensors/moonshine-tiny and -base): a Transformer on raw samples, with rotary positions."""

from fastspeech.models.moonshine.config import MoonshineConfig
from fastspeech.models.moonshine.features import Wav2Vec2FeatureExtractor
from fastspeech.models.moonshine.model import (
    MoonshineForConditionalGeneration,
    MoonshineModel,
    MoonshinePreTrainedModel,
)
from fastspeech.models.moonshine.processor import Wav2Vec2Processor

__all__ = [
    "MoonshineConfig",
    "MoonshineForConditionalGeneration",
    "MoonshineModel",
    "MoonshinePreTrainedModel",
    "Wav2Vec2FeatureExtractor",
    "Wav2Vec2Processor",
]
