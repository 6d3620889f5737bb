"""Our modules over the parameters of transformers' modules: the same tensors, held twice."""

import re
from typing import Any

import torch
from torch import Tensor, nn

from fastspeech.checkpoints import PretrainedModel

_MIMI_HALF = re.compile(r"\bencoder\.(encoder_transformer|downsample)\.")


def share(ours: nn.Module, theirs: nn.Module) -> None:
    """Make every parameter and buffer of `ours`, built on the meta device, the one of the same name in `theirs`.

    The very objects are shared, so that what replaces the memory of a parameter (`Module.to`, packing) replaces it for
    both. Buffers that are no part of a state are made anew, and names that `ours.key_map` leaves out are left out.

    Raises:
        ValueError: a tensor that one of them has and the other has not, or in another shape, or without memory; or a
            part of `ours` has a fixed dtype, and the same part of `theirs` another.
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
    for name, tensor in wanted.items():
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
    share(ours, theirs)
    config.dtype = ours.dtype
    ours.name_or_path = getattr(theirs, "name_or_path", "")
    return ours
