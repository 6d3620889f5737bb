"""CohereAsr (CohereLabs/cohere-transcribe-03-2026): a FastConformer encoder and a Transformer decoder."""

from fastspeech.models.cohere_asr.config import CohereAsrConfig, ParakeetEncoderConfig
from fastspeech.models.cohere_asr.model import (
    CohereAsrForConditionalGeneration,
    CohereAsrModel,
    CohereAsrPreTrainedModel,
)

__all__ = [
    "CohereAsrConfig",
    "CohereAsrForConditionalGeneration",
    "CohereAsrModel",
    "CohereAsrPreTrainedModel",
    "ParakeetEncoderConfig",
]
