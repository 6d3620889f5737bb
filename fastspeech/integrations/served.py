"""Encoders and decoders of transformers models whose forward is computed by ours, over the same parameters."""

import inspect
import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_modules

from fastspeech.generation.interface import Record
from fastspeech.integrations.shared import as_built, original_class, replaced_forward, share
from fastspeech.kernels.onednn import through_onednn
from fastspeech.layers.derived import Kept
from fastspeech.layers.relaid import Product, Relaid
from fastspeech.models.moonshine.encoder import HOP

ATTENTIONS = frozenset({"eager", "sdpa", "flash_attention_2", "flash_attention_3", "fastspeech"})
"""The implementations of attention that compute one and the same, which ours computes too."""

_KYUTAI_56 = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "past_key_values",
    "inputs_embeds",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
)

_FEW = 64
"""Rows up to which a product is bound by reading the weights."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_IGNORED = frozenset({"cache_position", "num_items_in_batch", "use_cache"})
"""Arguments that a transformers model passes down, and that change nothing there."""


class Served:
    """The forward of one module of transformers, by our counterpart of it.

    The module's own forward runs where ours would lose something: under `torch.compile`, whose work ours is, and the
    transforms of `torch.func`; where hooks, gradient checkpointing, hidden states or attention weights need the layers;
    where something has taken the place of a layer, of its forward or of a parameter, as adapters and quantisation do;
    where parameters differ in dtype; and for arguments and caches that ours does not know. In mode "inference" also
    where gradients are recorded.

    Args:
        module: of transformers.
        ours: our counterpart, on the meta device.
        training: whether it serves where gradients are recorded, too.

    Raises:
        ValueError: a forward with other arguments than the known ones, a class or layers that are not transformers'
            own, or parameters that are not those of `ours`.
    """

    arguments: ClassVar[Sequence[tuple[str, ...]]]
    """The names of the arguments of the module's forward, by the versions of transformers, the newest first."""

    def __init__(self, module: nn.Module, ours: Any, training: bool) -> None:
        self.module, self.ours, self.training = module, ours, training
        names = tuple(inspect.signature(type(module).forward).parameters)[1:]
        self._names = tuple(name for name in names if name != "kwargs")
        if self._names not in self.arguments:
            raise ValueError(f"its forward takes {', '.join(names)}, which is none of the known signatures")
        if type(module) is not original_class(module) or replaced_forward(module):
            raise ValueError(f"the forward of {type(module).__qualname__} is not transformers' own")
        self._expected = as_built(module)
        self._take()
        # Packing moves what had memory of its own.
        self._misfit = False
        self._run = Run()
        self._alone = [p for p in module.parameters() if p.untyped_storage().nbytes() == p.nbytes]
        self._look()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (torch.compiler.is_compiling() or self._must_not()):
            given = self._given(args, kwargs)
            result = None if given is None else self.compute(**given)
            if result is not None:
                return result
        return type(self.module).forward(self.module, *args, **kwargs)

    compute: Callable[..., Any]
    """The output for the first of `arguments` by name; None for those that ours does not serve."""

    def release(self) -> None:
        """Give parameters that were packed memory of their own again."""
        for parameter in self._alone:
            if parameter.untyped_storage().nbytes() != parameter.nbytes:
                parameter.data = parameter.data.clone()

    def of(self, *names: str) -> Any:
        """The first class of these names in the module's file."""
        home = sys.modules[type(self.module).__module__]
        return next(getattr(home, name) for name in names if hasattr(home, name))

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """What `compute` takes, by name; None where there is an argument that ours does not know."""
        given = dict.fromkeys(self.arguments[0])
        for name, value in [*zip(self._names, args, strict=False), *kwargs.items()]:
            if name in given:
                given[name] = value
            elif value not in (None, False) and name not in _IGNORED and not (name == "return_dict" and value is True):
                return None
        return given if len(args) <= len(self._names) else None

    def _steps(self, cache: Any, tokens: Tensor) -> list[Any]:
        """The layers of a decoder for tokens (rows, n, ...) behind those in the cache."""
        if cache is None or tokens.shape[1] > 1 or torch.is_grad_enabled():
            return self._functions(None)
        return self._run.steps(cache, len(tokens), lambda: self._functions(self.ours.product(len(tokens))))

    def _functions(self, product: Product | None) -> list[Any]:
        return self.ours.steps(product)

    def _must_not(self) -> bool:
        config: Any = self.module.config
        return (
            (torch.is_grad_enabled() and not self.training)
            or config.output_attentions
            or config.output_hidden_states
            or not getattr(config, "return_dict", True)
            or config._attn_implementation not in ATTENTIONS
            or torch_modules._has_any_global_hook()
            or torch._C._functorch.peek_interpreter_stack() is not None
            or (any(self._hooks) and any(map(_watching, self._hooks)))
            or any(
                type(part) is not kind or ("forward" in held and replaced_forward(part))
                for part, kind, held in self._within
            )
            or (self.module.training and any(layer.gradient_checkpointing for layer in self._checkpointed))
            or not self._current()
        )

    def _take(self) -> None:
        share(self.ours, self.module, self._expected)
        dtypes = {parameter.dtype for parameter in self.module.parameters()}
        if len(dtypes) > 1:
            raise ValueError(f"its parameters are {' and '.join(sorted(map(str, dtypes)))}")

    def _current(self) -> bool:
        """Whether `ours` has the parameters of the module; takes what was exchanged since the last call."""
        first = self._parameters[0]
        place = first.device, *(parameter.dtype for parameter in self._parameters)
        if place != self._place or not all(held.get(name) is value for held, name, value in self._seen):
            self._misfit = False
            self._run.drop()
            try:
                self._take()
            except ValueError as error:
                self._misfit = True
                warnings.warn(f"fastspeech no longer serves {type(self.module).__name__}: {error}", stacklevel=2)
            self._look()
        if self.ours.training != self.module.training:
            self.ours.train(self.module.training)
        return not self._misfit

    def _look(self) -> None:
        """Remember what there is, by which the next call sees whether it is there still."""
        parts = list(self.module.modules())
        self._seen: list[tuple[dict[str, Any], str, Any]] = [
            (held, name, value)
            for part in parts
            for held in (part._modules, part._parameters, part._buffers)
            for name, value in held.items()
            if name not in part._non_persistent_buffers_set
        ]
        self._within = [(part, type(part), vars(part)) for part in parts[1:]]
        self._hooks = [getattr(part, kind) for part in parts[1:] for kind in _HOOKS]
        self._checkpointed: Any = [part for part in parts if hasattr(part, "gradient_checkpointing")]
        self._parameters = list(self.module.parameters())
        self._place = self._parameters[0].device, *(parameter.dtype for parameter in self._parameters)


class Run(Kept):
    """The layers of a decoder as functions, for as long as it goes on with one cache: of the parameters with which it
    began, as in our own models."""

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        self._held: tuple[weakref.ref[Any], int, list[Any]] | None = None

    def steps(self, cache: Any, rows: int, make: Callable[[], list[Any]]) -> list[Any]:
        held = self._held
        if held is None or held[0]() is not cache or held[1] != rows:
            self._held = held = weakref.ref(cache), rows, make()
        return held[2]


class Head:
    """The forward of the linear map to the vocabulary, for the few rows of a decoding step."""

    def __init__(self, module: nn.Linear) -> None:
        self.module = module
        self._relaid = Relaid()

    def __call__(self, input: Tensor) -> Tensor:
        module = self.module
        rows = input.numel() // module.in_features
        if (
            torch.compiler.is_compiling()
            or torch.is_grad_enabled()
            or not 0 < rows <= _FEW
            or input.dtype != module.weight.dtype
            or not through_onednn(module.weight)
        ):
            return type(module).forward(module, input)
        return self._relaid.product(rows)(module)(input)

    def release(self) -> None:
        """It has moved nothing."""


class MoonshineEncoder(Served):
    arguments = (("input_values", "attention_mask"),)

    def compute(self, input_values: Tensor, attention_mask: Tensor | None) -> Any:
        if attention_mask is not None and not _comes_first(attention_mask):
            return None
        found = self.ours(input_values, attention_mask, False, False, False, True)
        record = self.of("MoonshineEncoderModelOutput", "BaseModelOutputWithPast")
        if hasattr(record, "attention_mask"):
            return record(found.last_hidden_state, attention_mask=found.attention_mask)
        return record(found.last_hidden_state)


class ParakeetEncoder(Served):
    arguments = (("input_features", "attention_mask", "output_attention_mask"), ("input_features", "attention_mask"))

    def compute(self, input_features: Tensor, attention_mask: Tensor | None, output_attention_mask: bool | None) -> Any:
        found = self.ours(input_features, attention_mask, output_attention_mask is not False, False, False, True)
        return self.of("ParakeetEncoderModelOutput")(found.last_hidden_state, attention_mask=found.attention_mask)


class Speech2TextEncoder(Served):
    arguments = (
        ("input_features", "attention_mask"),
        ("input_features", "attention_mask", "head_mask", "output_attentions", "output_hidden_states", "return_dict"),
    )

    def compute(self, input_features: Tensor, attention_mask: Tensor | None) -> Any:
        if attention_mask is not None and attention_mask.dim() != 2:
            return None
        found = self.ours(input_features, attention_mask, None, False, False, True)
        return self.of("BaseModelOutput")(found.last_hidden_state)


class Past:
    """A cache of transformers as our decoders know caches."""

    def __init__(self, layers: Any, rows: int) -> None:
        self._layers = layers
        self.owners = rows
        self.length = 0 if layers is None else layers.get_seq_length()
        self.kept = self.length

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return self._layers.update(keys, values, layer)

    def mask(self, tokens: int) -> None:
        """Rows own their memory."""

    def separate(self) -> None:
        """They always are."""

    def advance(self, tokens: int) -> None:
        """Its layers count."""

    def by_token(self, weights: Tensor) -> Tensor:
        return weights


class Decoder(Served):
    """Of an encoder-decoder model."""

    arguments: ClassVar[Sequence[tuple[str, ...]]] = (
        (
            "input_ids",
            "attention_mask",
            "position_ids",
            "past_key_values",
            "inputs_embeds",
            "use_cache",
            "encoder_hidden_states",
            "encoder_attention_mask",
        ),
        (
            "input_ids",
            "attention_mask",
            "position_ids",
            "past_key_values",
            "inputs_embeds",
            "use_cache",
            "cache_position",
            "encoder_hidden_states",
            "encoder_attention_mask",
        ),
    )

    def compute(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Any:
        tokens = inputs_embeds if input_ids is None else input_ids
        encoded, cache = encoder_hidden_states, past_key_values
        config: Any = self.module.config
        use_cache = getattr(config, "use_cache", None) if use_cache is None else use_cache
        if tokens is None or encoded is None or len(encoded) != len(tokens):
            return None
        if input_ids is not None and inputs_embeds is not None:
            return None
        if cache is None and use_cache:
            kind = self.of("DynamicCache")
            cache = self.of("EncoderDecoderCache")(kind(config=config), kind(config=config))
        if cache is not None and not _grows(cache.self_attention_cache, cache.cross_attention_cache):
            return None
        past = None if cache is None else Past(cache.self_attention_cache, len(tokens))
        seen = tokens.shape[1] + (0 if past is None else past.length)
        fits, attention_mask = _of_tokens(attention_mask, len(tokens), seen)
        if not fits:
            return None
        lengths = None
        if encoder_attention_mask is not None:
            valid = self._frames(encoder_attention_mask, encoded.shape[1])
            if valid is None or valid.shape != encoded.shape[:2] or not _comes_first(valid):
                return None
            lengths = valid.sum(-1)
            if valid.device.type == "cpu" and int(lengths.min()) == valid.shape[1]:
                lengths = None
        keys, values = self._cross(encoded, cache)
        last = self.ours.run(
            self._steps(cache, tokens),
            input_ids,
            keys,
            values,
            lengths,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            token_mask=attention_mask,
            cache=past,
        )
        record = self.of("BaseModelOutputWithPastAndCrossAttentions")
        return record(last_hidden_state=last, past_key_values=cache if use_cache else None)

    def _frames(self, mask: Tensor, frames: int) -> Tensor | None:
        return mask if mask.dim() == 2 else None

    def _cross(self, encoded: Tensor, cache: Any) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Keys and values of the encoder's frames by layer; what the cache lacks of them goes there."""
        layers = range(len(self.ours.layers))
        if cache is None or not all(cache.is_updated.get(layer) for layer in layers):
            keys, values = (side.unbind(0) for side in self.ours.cross_keys_values(encoded))
            if cache is None:
                return keys, values
            for layer in layers:
                cache.cross_attention_cache.update(keys[layer], values[layer], layer)
                cache.is_updated[layer] = True
        held = cache.cross_attention_cache.layers
        return [held[layer].keys for layer in layers], [held[layer].values for layer in layers]


class MoonshineDecoder(Decoder):
    def _frames(self, mask: Tensor, frames: int) -> Tensor | None:
        # transformers 4 passes the mask of the samples.
        return mask if mask.shape[1] == frames else mask[:, ::HOP][:, :frames]


class Speech2TextDecoder(Decoder):
    arguments = (
        (
            "input_ids",
            "attention_mask",
            "encoder_hidden_states",
            "encoder_attention_mask",
            "past_key_values",
            "inputs_embeds",
            "use_cache",
        ),
        (
            "input_ids",
            "attention_mask",
            "encoder_hidden_states",
            "encoder_attention_mask",
            "head_mask",
            "cross_attn_head_mask",
            "past_key_values",
            "inputs_embeds",
            "use_cache",
            "output_attentions",
            "output_hidden_states",
            "return_dict",
            "cache_position",
        ),
    )

    def compute(self, **given: Any) -> Any:  # type: ignore[override]
        # Without ids transformers fails, as it takes positions from them.
        return None if given["input_ids"] is None else super().compute(**given)


class KyutaiSpeechToTextModel(Served):
    arguments = (
        ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "use_cache"),
        _KYUTAI_56,
        (*_KYUTAI_56, "cache_position"),
    )

    def compute(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: Any,
        inputs_embeds: Tensor | None,
        use_cache: bool | None,
    ) -> Any:
        config: Any = self.module.config
        cache = past_key_values
        use_cache = getattr(config, "use_cache", None) if use_cache is None else use_cache
        x: Tensor | None = inputs_embeds
        if input_ids is not None:
            if inputs_embeds is not None or input_ids.dim() != 3:
                return None
            x = self.ours._embedded(input_ids)
        if cache is None and use_cache:
            cache = self.of("DynamicCache")(config=config)
        if x is None or (cache is not None and not _grows(cache)):
            return None
        past = None if cache is None else Past(cache, len(x))
        if past is not None:
            past.kept = min(past.length, config.sliding_window - 1)
            if past.kept < past.length and "cache_position" in self._names:
                # transformers 4 masks what is in a full window by other tokens' places, and gives other results.
                return None
        fits, attention_mask = _of_tokens(attention_mask, len(x), x.shape[1] + (0 if past is None else past.length))
        if not fits:
            return None
        last = self.ours._run(x, attention_mask, position_ids, past, Record(), self._steps(cache, x))
        return self.of("BaseModelOutputWithPast")(last_hidden_state=last, past_key_values=cache)

    def _functions(self, product: Product | None) -> list[Any]:
        return self.ours._steps(product)


def _watching(hooks: dict[int, Any]) -> bool:
    """Whether there are hooks, other than those by which transformers records what it is asked for."""
    return bool(hooks) and any("output_capturing" not in getattr(hook, "__module__", "") for hook in hooks.values())


def _comes_first(mask: Tensor) -> bool:
    """Whether what is valid in each row of mask (rows, items) precedes what is not."""
    valid = mask.bool()
    return bool((valid[:, 1:] <= valid[:, :-1]).all())


def _of_tokens(mask: Tensor | None, rows: int, tokens: int) -> tuple[bool, Tensor | None]:
    """Whether ours serves a mask of tokens, and that mask, None where it is known to leave out nothing."""
    if mask is None:
        return True, None
    if not isinstance(mask, Tensor) or tuple(mask.shape) != (rows, tokens):
        return False, None
    return True, None if mask.device.type == "cpu" and bool(mask.all()) else mask


def _grows(*caches: Any) -> bool:
    """Whether these are transformers' caches that hold what they were given and no more."""
    return all(
        type(cache).__name__ == "DynamicCache"
        and all(type(layer).__name__ in ("DynamicLayer", "DynamicSlidingWindowLayer") for layer in cache.layers)
        and not any(getattr(layer, "record_past", False) for layer in cache.layers)
        for cache in caches
    )
