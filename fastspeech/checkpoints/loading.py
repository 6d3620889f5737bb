"""Filling a model that was built on the meta device with the tensors of a checkpoint."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastspeech.checkpoints.config import PretrainedConfig, parse_dtype
from fastspeech.checkpoints.weights import StoredTensor
from fastspeech.errors import CheckpointError

if TYPE_CHECKING:
    from fastspeech.checkpoints.pretrained import PretrainedModel


def choose_device(device_map: torch.device | str | int | dict[str, Any] | None) -> torch.device:
    """The one device of `from_pretrained`'s `device_map`.

    Raises:
        ValueError: a map that spreads the model over several devices.
    """
    if device_map is None:
        return torch.device("cpu")
    if isinstance(device_map, dict):
        if set(device_map) != {""}:
            raise ValueError(f"device_map can place the whole model only, as {{'': device}}; got {device_map}")
        return choose_device(device_map[""])
    if device_map == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(device_map)


def choose_dtype(
    dtype: torch.dtype | str | None, config: PretrainedConfig, stored: dict[str, StoredTensor]
) -> torch.dtype:
    """The dtype asked for; for "auto" and None the one the configuration names, else the first floating tensor's."""
    if dtype != "auto" and (asked := parse_dtype(dtype)) is not None:
        return asked
    if config.dtype is not None:
        return config.dtype
    return next((tensor.dtype for tensor in stored.values() if tensor.dtype.is_floating_point), torch.float32)


def fill(
    model: "PretrainedModel", folder: Path, stored: dict[str, StoredTensor], device: torch.device, dtype: torch.dtype
) -> None:
    """Give every parameter and buffer of `model` its tensor, on `device`, floating ones as `dtype` or as the part of
    the model they are in is fixed to.

    Names and shapes are checked before the first tensor is read. A model with a head takes the weights of a bare
    checkpoint; its head is then initialised, with a warning.

    Raises:
        CheckpointError: a tensor is missing, misshapen or without a place in the model, or two that should be tied
            differ.
    """
    sources, fresh = _match(model, folder, stored)
    for name in fresh:
        module = model.get_submodule(name)
        module.to_empty(device=device, recurse=False)
        module.reset_parameters()  # type: ignore[operator]
        module.to(dtype)
    fixed = {
        f"{name}." if name else "": module.fixed_dtype
        for name, module in model.named_modules()
        if getattr(module, "fixed_dtype", None) is not None
    }
    tensors = {}
    for name, tensor in sources.items():
        floating = next((kept for part, kept in fixed.items() if name.startswith(part)), dtype)
        tensors[name] = tensor.read().to(device=device, dtype=floating if tensor.dtype.is_floating_point else None)
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    with torch.device(device):
        for module in model.modules():
            if hasattr(module, "reset_buffers"):
                module.reset_buffers()  # type: ignore[operator]
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if left:
        raise RuntimeError(f"no reset_buffers() makes {_listed(left)} of {type(model).__name__}")


def _match(
    model: "PretrainedModel", folder: Path, stored: dict[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], set[str]]:
    """The stored tensor of every name in the model's state, and the modules that have to be initialised instead."""
    what = type(model).__name__
    wanted = model.state_dict()
    found, unexpected = _placed(model, wanted, stored)
    _untie(model, folder, found)
    missing = [name for name in wanted if name not in found and name not in model.tied()]
    fresh = _headless(model, missing, found)
    if fresh:
        warnings.warn(
            f"{folder} holds no {_listed(missing)}: newly initialised, and of no use before {what} is trained",
            stacklevel=4,
        )
    elif missing:
        instead = f", and holds {_listed(unexpected)} instead" if unexpected else ""
        raise CheckpointError(f"{folder} lacks {_listed(missing)}, which {what} needs{instead}")
    if unexpected:
        raise CheckpointError(f"{folder} holds {_listed(unexpected)}, which {what} has no place for")
    for name, tensor in found.items():
        shape = tuple(wanted[name].shape)
        if tensor.shape != shape:
            raise CheckpointError(f"{tensor.path}: {name} has the shape {tensor.shape}, and {what} needs {shape}")
    return found, fresh


def _placed(
    model: "PretrainedModel", wanted: dict[str, torch.Tensor], stored: dict[str, StoredTensor]
) -> tuple[dict[str, StoredTensor], list[str]]:
    """The stored tensors under the model's names, and the names of those the model has no place for.

    The base prefix is added or removed where that finds the place. A bare model leaves out the heads of a checkpoint
    (whatever is not under the prefix), and no model needs stored what `reset_buffers` makes.
    """
    prefix = model.base_model_prefix + "."
    bare = not hasattr(model, model.base_model_prefix)
    derived = {name for name, _ in model.named_buffers()} - set(wanted)
    found: dict[str, StoredTensor] = {}
    unexpected = []
    for raw, tensor in stored.items():
        of_base = raw.startswith(prefix)
        key = model.key_map(raw.removeprefix(prefix))
        if key is None:
            continue
        names = (prefix + key, key) if of_base else (key, prefix + key)
        name = next((name for name in names if name in wanted), None)
        if name is not None:
            found[name] = tensor
        elif (of_base or not bare) and derived.isdisjoint(names):
            unexpected.append(raw)
    return found, unexpected


def _untie(model: "PretrainedModel", folder: Path, found: dict[str, StoredTensor]) -> None:
    """Leave of tied tensors the source alone; .bin files hold both, under one memory."""
    for name, source in model.tied().items():
        copy = found.pop(name, None)
        if copy is None:
            continue
        original = found.setdefault(source, copy)
        if copy.shape != original.shape or not torch.equal(copy.read(), original.read()):
            raise CheckpointError(
                f"{folder} ties {name} to {source}, but holds two tensors that differ; "
                "load it with tie_word_embeddings=False to keep both"
            )


def _headless(model: "PretrainedModel", missing: list[str], found: dict[str, StoredTensor]) -> set[str]:
    """The modules of the head where a bare checkpoint is loaded into a model with one, else nothing; nothing too where
    they are more than a head, and no modules that can be initialised."""
    prefix = model.base_model_prefix + "."
    if not hasattr(model, model.base_model_prefix) or not found:
        return set()
    if any(name.startswith(prefix) for name in missing) or not all(name.startswith(prefix) for name in found):
        return set()
    modules = {name.rpartition(".")[0] for name in missing}
    return modules if all(hasattr(model.get_submodule(name), "reset_parameters") for name in modules) else set()


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
