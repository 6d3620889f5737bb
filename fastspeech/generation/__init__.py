"""Decoding: what turns a model's next-token logits into sequences."""

from .cache import DecoderCache
from .config import GenerationConfig
from .interface import StepModel

__all__ = ["DecoderCache", "GenerationConfig", "StepModel"]
