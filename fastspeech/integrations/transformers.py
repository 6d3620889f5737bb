"""transformers' models: ours over their parameters, or theirs with layers that our ops serve."""

from typing import Any

from torch import nn

import fastspeech
from fastspeech.checkpoints import PretrainedModel
from fastspeech.generation import GenerationConfig
from fastspeech.integrations.shared import build

_FAMILIES = ("CohereAsr", "KyutaiSpeechToText", "Moonshine", "Speech2Text")
_MODELS = frozenset({"MimiModel", *(f + end for f in _FAMILIES for end in ("Model", "ForConditionalGeneration"))})
"""The classes that have one name there and here."""


def from_transformers(hf_model: nn.Module) -> PretrainedModel:
    """Our model over the parameters of a transformers model.

    Nothing is copied: parameters and the buffers of the state are the same objects, a write through one model is seen
    by the other, and tied weights stay tied. Configuration and generation configuration are copies; training mode,
    dtype and device are those of `hf_model`, and `to` and `requires_grad_` on either change the parameters of both. A
    buffer (of the norms in CohereAsr's convolutions, and of Mimi's codebooks) that `to` replaces in one stays as it
    was in the other: move models before sharing them.

    Args:
        hf_model: a CohereAsr, Moonshine, Speech2Text or KyutaiSpeechToText model of transformers, for conditional
            generation or without head, or a MimiModel.

    Returns:
        The class of the same name in fastspeech.

    Raises:
        TypeError: another class.
        ValueError: parameters that are not those of its class (quantised, adapted or not loaded), or a codec of Kyutai
            STT in another dtype than float32.
    """
    name = known_name(hf_model)
    if name not in _MODELS:
        raise TypeError(
            f"{type(hf_model).__module__}.{type(hf_model).__name__} has no counterpart here; models of transformers "
            f"that have: {', '.join(sorted(_MODELS))}"
        )
    ours = build(getattr(fastspeech, name), hf_model)
    for path, part in ours.named_modules():
        if getattr(part, "generation_config", None) is not None:
            given = getattr(hf_model.get_submodule(path), "generation_config", None)
            if given is not None:
                part.generation_config = GenerationConfig.from_dict(given.to_diff_dict())
    return ours


def known_name(module: Any) -> str | None:
    """The name of the class of transformers that `module` is an instance of, or None."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("transformers.models."):
            return kind.__name__
    return None
