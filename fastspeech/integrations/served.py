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

from fastspeech.integrations.shared import as_built, original_class, replaced_forward, share
from fastspeech.kernels.onednn import through_onednn
from fastspeech.layers.derived import Kept
from fastspeech.layers.relaid import Product, Relaid

ATTENTIONS = frozenset({"eager", "sdpa", "flash_attention_2", "flash_attention_3", "fastspeech"})
"""The implementations of attention that compute one and the same, which ours computes too."""

_FEW = 64
"""Rows up to which a product is bound by reading the weights."""

_LIVE: weakref.WeakSet[Any] = weakref.WeakSet()
"""What has been given to modules as their forward, and may be called by what has since been put around it."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_IGNORED = frozenset({"cache_position", "num_items_in_batch", "use_cache"})
"""Arguments that a transformers model passes down, and that change nothing there."""


class Forward:
    """What takes the place of a module's forward until it is over; then it is the module's own."""

    over = False

    def __init__(self, module: Any) -> None:
        self.module = module
        _LIVE.add(self)

    def release(self) -> None:
        """Give parameters that were packed memory of their own again."""


def forwards(model: nn.Module) -> list[Forward]:
    """All of the modules within `model`."""
    modules = set(model.modules())
    held = [vars(module).get("forward") for module in modules]
    return [*{f for f in held if isinstance(f, Forward)} | {f for f in _LIVE if f.module in modules}]


class Served(Forward):
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
        super().__init__(module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (torch.compiler.is_compiling() or self.over or self._must_not()):
            given = self._given(args, kwargs)
            result = None if given is None else self.compute(**given)
            if result is not None:
                return result
        return type(self.module).forward(self.module, *args, **kwargs)

    compute: Callable[..., Any]
    """The output for the first of `arguments` by name; None for those that ours does not serve."""

    def release(self) -> None:
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


class Head(Forward):
    """The forward of the linear map to the vocabulary, for the few rows of a decoding step.

    Raises:
        ValueError: another module than a plain linear map.
    """

    def __init__(self, module: nn.Linear) -> None:
        if "forward" in vars(module) or not self._plain(module):
            raise ValueError(f"it is a {type(module).__name__} and no plain linear map, or has another forward")
        super().__init__(module)
        self._relaid = Relaid()

    def __call__(self, input: Tensor) -> Tensor:
        module = self.module
        rows = input.numel() // module.in_features
        if (
            torch.compiler.is_compiling()
            or self.over
            or torch.is_grad_enabled()
            or not self._plain(module)
            or not 0 < rows <= _FEW
            or input.dtype != module.weight.dtype
            or not through_onednn(module.weight)
        ):
            return type(module).forward(module, input)
        return self._relaid.product(rows)(module)(input)

    @staticmethod
    def _plain(module: nn.Module) -> bool:
        return type(module) is nn.Linear and type(module.weight) is nn.Parameter


def _watching(hooks: dict[int, Any]) -> bool:
    """Whether there are hooks, other than those by which transformers records what it is asked for."""
    return bool(hooks) and any("output_capturing" not in getattr(hook, "__module__", "") for hook in hooks.values())
