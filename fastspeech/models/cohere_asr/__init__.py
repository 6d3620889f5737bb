"""CohereAsr (CohereLabs/cohere-transcribe-03-2026): a FastConformer encoder and a Transformer decoder."""

from fastspeech.models.cohere_asr.config import CohereAsrConfig, ParakeetEncoderConfig
from fastspeech.models.cohere_asr.features import CohereAsrFeatureExtractor
from fastspeech.models.cohere_asr.model import (
    CohereAsrForConditionalGeneration,
    CohereAsrModel,
    CohereAsrPreTrainedModel,
)
from fastspeech.models.cohere_asr.processor import CohereAsrProcessor

__all__ = [
    "CohereAsrConfig",
    "CohereAsrFeatureExtractor",
    "CohereAsrForConditionalGeneration",
    "CohereAsrModel",
    "CohereAsrPreTrainedModel",
    "CohereAsrProcessor",
    "ParakeetEncoderConfig",
]
