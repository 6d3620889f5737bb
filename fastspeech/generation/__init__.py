"""Decoding: what turns a model's next-token logits into sequences."""

from .cache import DecoderCache
from .config import GenerationConfig
from .interface import LogitsRule, StepModel, StoppingCriterion, Streamer
from .mixin import GenerationMixin

__all__ = [
    "DecoderCache",
    "GenerationConfig",
    "GenerationMixin",
    "LogitsRule",
    "StepModel",
    "StoppingCriterion",
    "Streamer",
]
