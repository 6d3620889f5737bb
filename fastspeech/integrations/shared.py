"""Our modules over the parameters of transformers' modules: the same tensors, held twice."""

import copy
import re
from typing import Any

import torch
from torch import Tensor, nn

from fastspeech.checkpoints import PretrainedModel

Outline = dict[str, tuple[type, str]]
"""By the names of the modules within one, their class and what tells of them beside their parameters."""

_MIMI_HALF = re.compile(r"\bencoder\.(encoder_transformer|downsample)\.")


def original_class(module: Any) -> type | None:
    """The class of transformers that `module` is an instance of, or None."""
    return next((kind for kind in type(module).__mro__ if kind.__module__.startswith("transformers.models.")), None)


def as_built(theirs: Any) -> Outline:
    """The outline of what transformers builds by the configuration of `theirs`."""
    kind: Any = original_class(theirs)
    with torch.device("meta"):
        return _outline(kind(copy.deepcopy(theirs.config)))


def share(ours: nn.Module, theirs: nn.Module, expected: Outline) -> None:
    """Make every parameter and buffer of `ours`, built on the meta device, the one of the same name in `theirs`.

    The very objects are shared, so that what replaces the memory of a parameter (`Module.to`, packing) replaces it for
    both. Buffers that are no part of a state are made anew, and names that `ours.key_map` leaves out are left out.

    Args:
        ours: built on the meta device, or shared before.
        theirs: the module of transformers.
        expected: of `theirs`, from `as_built`.

    Raises:
        ValueError: a module within `theirs` that computes something else than what transformers put there, such as a
            linear map with an adapter; a tensor that one of them has and the other has not, or in another shape, or
            without memory, or that is no plain tensor, such as a quantised one; or a part of `ours` has a fixed dtype,
            and the same part of `theirs` another.
    """
    found = tensors(theirs)
    state = map(checkpoint_name, theirs.state_dict(keep_vars=True))
    key_map = getattr(ours, "key_map", lambda name: name)
    wanted = ours.state_dict(keep_vars=True)
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in state if name not in wanted and key_map(name) is not None]
    what = f"{type(theirs).__name__} as {type(ours).__module__}.{type(ours).__qualname__}"
    if missing or unknown:
        raise ValueError(f"cannot take {what}: it lacks {missing[:3]}, and has {unknown[:3]}, which has no place there")
    here = _outline(theirs)
    for name in sorted(here.keys() | expected.keys()):
        if here.get(name) != expected.get(name):
            raise ValueError(
                f"cannot take {what}: {name} is {_described(here, name)}, and should be {_described(expected, name)}"
            )
    for name, part in theirs.named_modules():
        if name and replaced_forward(part):
            raise ValueError(f"cannot take {what}: something else has replaced the forward of {name}")
    for name, tensor in wanted.items():
        if type(found[name]) not in (nn.Parameter, Tensor):
            raise ValueError(f"cannot take {what}: {name} is a {type(found[name]).__name__}, not a plain tensor")
        if found[name].shape != tensor.shape or found[name].is_meta:
            where = "on the meta device" if found[name].is_meta else f"{tuple(found[name].shape)}"
            raise ValueError(f"cannot take {what}: {name} is {where}, and should be {tuple(tensor.shape)}")
    for part, module in ours.named_modules():
        fixed = getattr(module, "fixed_dtype", None)
        for name, tensor in module.state_dict(prefix=part + "." if part else "").items():
            if fixed is not None and tensor.is_floating_point() and found[name].dtype != fixed:
                raise ValueError(f"cannot take {what}: {name} is {found[name].dtype}, and must be {fixed}")
    for name in wanted:
        owner, _, attribute = name.rpartition(".")
        module = ours.get_submodule(owner)
        held: dict[str, Any] = module._parameters if attribute in module._parameters else module._buffers
        held[attribute] = found[name]
    with torch.device(next(theirs.parameters()).device):
        for module in ours.modules():
            if hasattr(module, "reset_buffers"):
                module.reset_buffers()  # type: ignore[operator]
    ours.train(theirs.training)


def replaced_forward(module: nn.Module) -> bool:
    """Whether something else than `accelerate` has given this instance, or its class, another forward."""
    original = type(module).forward
    own = vars(module).get("forward", original)
    if getattr(own, "__func__", own) is not original and not type(own).__module__.startswith("fastspeech."):
        return True
    return original.__module__.partition(".")[0] not in ("torch", "transformers")


def _outline(module: nn.Module) -> Outline:
    return {name: (type(part), part.extra_repr()) for name, part in module.named_modules() if name}


def _described(outline: Outline, name: str) -> str:
    if name not in outline:
        return "missing"
    kind, extra = outline[name]
    return f"{kind.__name__}({extra})"


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by their names in checkpoints, shared ones under each of their names."""
    held = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    return {checkpoint_name(name): tensor for name, tensor in held}


def checkpoint_name(name: str) -> str:
    """The name in checkpoints, which is ours, of what a module of transformers calls `name`.

    They differ in Mimi alone, whose halves transformers 5.23 has as modules of their own.
    """
    return _MIMI_HALF.sub(r"\1.", name).replace("encoder.encoder_seanet.", "encoder.")


def build(made: type[PretrainedModel], theirs: Any) -> PretrainedModel:
    """A model of the class `made` over the parameters of `theirs`, of transformers' class of the same name."""
    config = made.config_class.from_dict(theirs.config.to_dict())
    with torch.device("meta"):
        ours = made(config)
    share(ours, theirs, as_built(theirs))
    config.dtype = ours.dtype
    ours.name_or_path = getattr(theirs, "name_or_path", "")
    return ours
