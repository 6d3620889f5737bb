"""transformers' models: ours over their parameters, or theirs with layers that our ops serve."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import torch
from torch import nn

import fastspeech
from fastspeech.checkpoints import PretrainedModel
from fastspeech.generation import GenerationConfig
from fastspeech.integrations import counterparts, served
from fastspeech.integrations.shared import build, original_class
from fastspeech.kernels import rope_attention
from fastspeech.layers.attention import attention

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
                # transformers 4 leaves out what is its default, and not that of the model.
                set_there = {"use_cache": given.use_cache} | given.to_diff_dict()
                part.generation_config = GenerationConfig.from_dict(set_there)
    return ours


def peer(name: str, config: str, arguments: Mapping[str, Any]) -> Any:
    """A model of transformers with random weights, in evaluation mode.

    Args:
        name: its class.
        config: the class of its configuration.
        arguments: of the configuration.
    """
    import transformers

    return getattr(transformers, name)(getattr(transformers, config)(**arguments)).eval()


@dataclass(frozen=True)
class Report:
    """What `accelerate` did.

    Attributes:
        replaced: by the names of the modules whose forward is now ours, their class.
        served: by class, how many modules these consist of, themselves included.
        left: by the names of the other modules ("" for the model itself), why they are as they were. A module stands
            for all it consists of and that is not replaced.
    """

    replaced: dict[str, str]
    served: dict[str, int]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"replaced {name}, a {kind}" for name, kind in self.replaced.items()]
        if self.served:
            lines.append("these consist of " + ", ".join(f"{count} {kind}" for kind, count in self.served.items()))
        return "\n".join([*lines, *(f"left {name or 'the model'}: {why}" for name, why in self.left.items())])


def accelerate(
    hf_model: nn.Module, mode: Literal["inference", "training"] = "inference", strict: bool = False
) -> Report:
    """Let our encoders and decoders compute a transformers model, in place, until `restore`.

    The forwards of its encoder and decoder are replaced, on these instances alone, by ours over the same parameters:
    attention with its positions, convolution modules, norms with their residual sums, feed-forward sublayers, front end
    and decoding step, and of the head. `generate`, with transformers' own caches, and all else stay transformers'.
    Parameters are not copied; packing moves projections of one input together, and each stays the parameter it was,
    with a view of the whole. On the CPU decoding in float32 takes memory for the decoder's weights a second time, laid
    out as few rows are multiplied by them fastest, as our own models do.
    Encoder frames behind a clip's end, which nothing attends to, may differ.

    The original forward runs where ours would lose something: under `torch.compile` and the transforms of
    `torch.func`; with hooks within the module or gradient checkpointing; where hidden states or attention weights are
    asked for; with caches of fixed size; with masks of audio that leave out what is not at the end. A module is left,
    or the original forward runs from then on, where a layer, its forward or a parameter within is not transformers'
    own: an adapter, a quantised weight, parameters of several dtypes. Under autocast the frames of an encoder may have
    the lower precision where transformers' have float32.

    Args:
        hf_model: as for `from_transformers`.
        mode: "inference": the original runs where gradients are recorded. "training": ours then runs, too.
        strict: raise where something that has a counterpart here was not replaced.

    Returns:
        What was replaced, and what was not and why.

    Raises:
        ValueError: another mode; with `strict` an unknown model, or a module that was not replaced, which leaves all
            as it was.
    """
    if mode not in ("inference", "training"):
        raise ValueError(f"mode must be 'inference' or 'training', got {mode!r}")
    restore(hf_model)
    made: dict[str, Any] = {}
    head: Any = getattr(hf_model, "get_output_embeddings", lambda: None)()
    refused: dict[str, str] = {}
    known = known_name(hf_model) in _MODELS
    for name, module in hf_model.named_modules() if known else ():
        kind = known_name(module)
        try:
            if kind in _COUNTERPARTS:
                made[name] = _serve(module, *_COUNTERPARTS[kind], mode == "training")
            elif made and module is head:
                made[name] = served.Head(module)
        except ValueError as error:
            refused[name] = str(error)
    left = _left(hf_model, set(made), refused) if known else {"": f"{type(hf_model).__name__} is not known here"}
    if strict and (refused or not made):
        raise ValueError(
            "\n".join(f"{name or type(hf_model).__name__}: {why}" for name, why in (refused or left).items())
        )
    for name, forward in made.items():
        hf_model.get_submodule(name).forward = forward  # type: ignore[assignment]
    parts = [part for name in made for part in hf_model.get_submodule(name).modules()]
    replaced = {name: type(hf_model.get_submodule(name)).__name__ for name in made}
    return Report(replaced, dict(Counter(type(part).__name__ for part in parts)), left)


def restore(hf_model: nn.Module) -> None:
    """Undo `accelerate`: every module has its own forward again, and every parameter memory of its own.

    What something else has put around a forward of ours stays, and calls the module's own.
    """
    for forward in served.forwards(hf_model):
        if vars(forward.module).get("forward") is forward:
            del forward.module.forward
        forward.over = True
        forward.release()


def register() -> None:
    """Make `attn_implementation="fastspeech"` known to transformers, for any model that takes its attention by name.

    It is `rope_attention` without rotation; with a mask as a tensor, as padding needs one, or with dropout it is
    `torch.nn.functional.scaled_dot_product_attention`.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("fastspeech", _attention)
    AttentionMaskInterface.register("fastspeech", sdpa_mask)


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """As transformers' attention functions: query (B, heads, queries, head_dim), key and value (B, kv_heads, keys,
    head_dim) to (B, queries, heads, head_dim), and the weights where `output_attentions` asks for them.

    Raises:
        ValueError: scores that are to be changed, by a cap or sinks.
    """
    asked = [name for name in ("softcap", "s_aux", "position_bias") if kwargs.get(name) is not None]
    if asked:
        raise ValueError(f"attn_implementation='fastspeech' knows no {', '.join(asked)}; use 'eager'")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    causal = causal and attention_mask is None and query.shape[2] > 1
    weights = bool(kwargs.get("output_attentions"))
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    if attention_mask is None and not dropout and not weights:
        q, k, v = (side.transpose(1, 2) for side in (query, key, value))
        return rope_attention(q, k, v, causal=causal, scale=scale), None
    # Ours scales by the head's width.
    query = query * (scale * query.shape[3] ** 0.5)
    out, found = attention(query, key, value, attention_mask, causal, dropout, weights)
    return out.unflatten(2, (query.shape[1], -1)), found


def known_name(module: Any) -> str | None:
    """The name of the class of transformers that `module` is an instance of, or None."""
    kind = original_class(module)
    return None if kind is None else kind.__name__


_COUNTERPARTS: dict[str | None, tuple[type[served.Served], str, str, str]] = {
    "CohereAsrDecoder": (counterparts.Decoder, "cohere_asr", "decoder.CohereAsrDecoder", "CohereAsrConfig"),
    "KyutaiSpeechToTextModel": (
        counterparts.KyutaiSpeechToTextModel,
        "kyutai_stt",
        "model.KyutaiSpeechToTextModel",
        "KyutaiSpeechToTextConfig",
    ),
    "MoonshineDecoder": (counterparts.MoonshineDecoder, "moonshine", "decoder.MoonshineDecoder", "MoonshineConfig"),
    "MoonshineEncoder": (counterparts.MoonshineEncoder, "moonshine", "encoder.MoonshineEncoder", "MoonshineConfig"),
    "ParakeetEncoder": (counterparts.ParakeetEncoder, "cohere_asr", "encoder.ParakeetEncoder", "ParakeetEncoderConfig"),
    "Speech2TextDecoder": (
        counterparts.Speech2TextDecoder,
        "speech_to_text",
        "decoder.Speech2TextDecoder",
        "Speech2TextConfig",
    ),
    "Speech2TextEncoder": (
        counterparts.Speech2TextEncoder,
        "speech_to_text",
        "encoder.Speech2TextEncoder",
        "Speech2TextConfig",
    ),
}
"""By class of transformers: what serves it, and of our counterpart the package, the class and its configuration."""


def _serve(
    module: Any, kind: type[served.Served], package: str, counterpart: str, config: str, training: bool
) -> served.Served:
    if "forward" in vars(module):
        raise ValueError("something else has replaced its forward")
    implementation = module.config._attn_implementation
    if implementation not in served.ATTENTIONS:
        raise ValueError(f"attn_implementation={implementation!r} was asked for, which need not be plain attention")
    home = f"fastspeech.models.{package}"
    file, _, name = counterpart.partition(".")
    make: Callable[[Any], nn.Module] = getattr(import_module(f"{home}.{file}"), name)
    with torch.device("meta"):
        ours = make(getattr(import_module(home), config).from_dict(module.config.to_dict()))
    return kind(module, ours, training)


def _left(model: nn.Module, replaced: set[str], refused: dict[str, str]) -> dict[str, str]:
    """Why each module is left that is within no other one left or replaced."""
    left: dict[str, str] = {}

    def visit(name: str, module: nn.Module) -> None:
        if name in replaced:
            return
        within = [other for other in (*replaced, *refused) if not name or other.startswith(f"{name}.")]
        left[name] = refused.get(name) or ("it hands on what is given to those within" if within else _why(module))
        for child, part in module.named_children() if within else ():
            visit(f"{name}.{child}" if name else child, part)

    visit("", model)
    return left


def _why(module: nn.Module) -> str:
    if known_name(module) == "MimiModel":
        return "transformers streams it through caches that ours does not have; from_transformers serves it"
    return "no op of ours computes it"
