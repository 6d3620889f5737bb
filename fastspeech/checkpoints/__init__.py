"""Checkpoints: configuration, weights, tokenizer and extractor settings, in and out."""

from fastspeech.checkpoints.config import PretrainedConfig
from fastspeech.checkpoints.feature_base import BatchFeature, FeatureExtractor
from fastspeech.checkpoints.pretrained import PretrainedModel
from fastspeech.checkpoints.processor_base import ProcessorMixin
from fastspeech.checkpoints.tokenizer import Tokenizer

__all__ = ["BatchFeature", "FeatureExtractor", "PretrainedConfig", "PretrainedModel", "ProcessorMixin", "Tokenizer"]
