"""Speech2Text (fairseq S2T): a convolutional Transformer encoder and a Transformer decoder."""

from fastspeech.models.speech_to_text.config import Speech2TextConfig
from fastspeech.models.speech_to_text.features import Speech2TextFeatureExtractor
from fastspeech.models.speech_to_text.model import (
    Speech2TextForConditionalGeneration,
    Speech2TextModel,
    Speech2TextPreTrainedModel,
)
from fastspeech.models.speech_to_text.processor import Speech2TextProcessor
from fastspeech.models.speech_to_text.tokenizer import Speech2TextTokenizer

__all__ = [
    "Speech2TextConfig",
    "Speech2TextFeatureExtractor",
    "Speech2TextForConditionalGeneration",
    "Speech2TextModel",
    "Speech2TextPreTrainedModel",
    "Speech2TextProcessor",
    "Speech2TextTokenizer",
]
