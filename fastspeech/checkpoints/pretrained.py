"""Base of the models: from a checkpoint to a module and back."""

import os
import warnings
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from fastspeech.checkpoints.config import PretrainedConfig, parse_dtype
from fastspeech.checkpoints.files import inside, locate
from fastspeech.checkpoints.weights import StoredTensor, open_weights, save_weights
from fastspeech.errors import CheckpointError

GENERATION_FILE = "generation_config.json"


class PretrainedModel(nn.Module):
    """A module that is built from a configuration, and loaded from and saved to checkpoint folders.

    A subclass calls `super().__init__(config)`, builds its modules, and ends its `__init__` with `self.tie_weights()`
    where it ties any. Two conventions let it be built on the meta device, without memory, and filled from a file:

    * a module with non-persistent buffers makes them in a method `reset_buffers()`, which its `__init__` calls and
      which `from_pretrained` calls again once the module is on its device. The method chooses their dtypes;
    * a model that offers a base (`base_model_prefix`) and adds a head to it initialises the head with the
      `reset_parameters()` of its modules, as PyTorch's own do.

    Attributes:
        config_class: the configuration it is built from.
        base_model_prefix: the attribute under which a model with a head keeps the bare model. Checkpoints of the one
            load into the other: the prefix is added or removed.
        tied_keys: parameters that are another one where `config.tie_word_embeddings` holds, `{name: source}`. Only
            the source is saved.
        generation_config_class: the class of `generation_config`; None for a model that cannot generate.
    """

    config_class: ClassVar[type[PretrainedConfig]]
    base_model_prefix: ClassVar[str] = "model"
    main_input_name: ClassVar[str] = "input_features"
    tied_keys: ClassVar[dict[str, str]] = {}
    generation_config_class: ClassVar[type[Any] | None] = None

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.config = config
        self.name_or_path = ""
        maker = self.generation_config_class
        self.generation_config = None if maker is None else maker.from_model_config(config)

    @staticmethod
    def key_map(name: str) -> str | None:
        """The model's name (prefix included) for a tensor that a checkpoint calls `name`, or None to ignore it.

        A model with a released layout of its own overrides this; its own names map to themselves.
        """
        return name

    @classmethod
    def can_generate(cls) -> bool:
        """Whether the model has `generate`."""
        return cls.generation_config_class is not None

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        config: PretrainedConfig | None = None,
        revision: str | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: torch.device | str | int | dict[str, Any] | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **overrides: Any,
    ) -> Self:
        """The model of a checkpoint folder or hub id, in evaluation mode.

        Args:
            name_or_path: a folder, or a hub id such as "organisation/model".
            config: used in place of the checkpoint's config.json.
            revision: branch, tag or commit on the hub.
            dtype: of the floating parameters and buffers. "auto" and None: what config.json says, else that of the
                first floating tensor.
            torch_dtype: former name of `dtype`.
            device_map: "auto" for the GPU where there is one, a device, or `{"": device}`. None: the CPU.
            cache_dir: where downloads are kept.
            local_files_only: never download.
            token: hub token.
            **overrides: fields of the configuration to replace.

        Raises:
            CheckpointError: anything wrong in the checkpoint; the message names it. Raised before memory is taken.
            ValueError: wrong arguments.
        """
        folder = locate(
            name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            weights=True,
        )
        device = choose_device(device_map)
        if config is None:
            config = cls.config_class.from_folder(folder, **overrides)
        elif overrides:
            raise ValueError(f"set {', '.join(overrides)} in the config you pass")
        stored = open_weights(folder)
        chosen = choose_dtype(dtype if dtype is not None else torch_dtype, config, stored)

        with torch.device("meta"):
            model = cls(config)
        _Loader(model, folder, stored).fill(device, chosen)
        config.dtype = chosen
        model.name_or_path = os.fspath(name_or_path)
        maker = cls.generation_config_class
        if maker is not None and inside(folder, GENERATION_FILE).exists():
            model.generation_config = maker.from_pretrained(folder)
        return model.eval()

    def save_pretrained(self, folder: str | os.PathLike[str], max_shard_size: int | str = "5GB") -> None:
        """Write config.json, generation_config.json and the weights into `folder`, as transformers reads them."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.architectures = [type(self).__name__]
        self.config.dtype = self.dtype
        self.config.save_pretrained(folder)
        if self.generation_config is not None:
            self.generation_config.save_pretrained(folder)
        tied = self.tied()
        tensors = {name: tensor for name, tensor in self.state_dict().items() if name not in tied}
        save_weights(tensors, folder, max_shard_size)

    def tied(self) -> dict[str, str]:
        """`tied_keys` where this configuration ties, else nothing."""
        return self.tied_keys if getattr(self.config, "tie_word_embeddings", False) else {}

    def tie_weights(self) -> None:
        """Make every tied parameter its source."""
        for name, source in self.tied().items():
            owner, _, attribute = name.rpartition(".")
            setattr(self.get_submodule(owner), attribute, self.get_parameter(source))

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """That of the first floating parameter."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    def num_parameters(self, only_trainable: bool = False) -> int:
        """The number of parameters, tied ones once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)


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
    if dtype is not None and dtype != "auto":
        asked = parse_dtype(dtype)
        assert asked is not None
        return asked
    if config.dtype is not None:
        return config.dtype
    return next((tensor.dtype for tensor in stored.values() if tensor.dtype.is_floating_point), torch.float32)


class _Loader:
    """Fills a model that was built on the meta device."""

    def __init__(self, model: PretrainedModel, folder: Path, stored: dict[str, StoredTensor]) -> None:
        self.model = model
        self.folder = folder
        self.wanted = model.state_dict()
        self.bare = not hasattr(model, model.base_model_prefix)
        self.fresh: set[str] = set()
        self.sources = self._match(stored)

    def fill(self, device: torch.device, dtype: torch.dtype) -> None:
        """Read every tensor to `device`, floating ones as `dtype`."""
        model = self.model
        for name in self.fresh:
            model.get_submodule(name).to_empty(device=device, recurse=False)
            model.get_submodule(name).reset_parameters()  # type: ignore[operator]
            model.get_submodule(name).to(dtype)
        tensors = {
            name: tensor.read().to(device=device, dtype=dtype if tensor.dtype.is_floating_point else None)
            for name, tensor in self.sources.items()
        }
        model.load_state_dict(tensors, strict=False, assign=True)
        model.tie_weights()
        with torch.device(device):
            for module in model.modules():
                if hasattr(module, "reset_buffers"):
                    module.reset_buffers()  # type: ignore[operator]
        left = [name for name, tensor in _all_tensors(model) if tensor.is_meta]
        if left:
            raise RuntimeError(f"no reset_buffers() makes {_listed(left)} of {type(model).__name__}")

    def _match(self, stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
        prefix = self.model.base_model_prefix + "."
        derived = {name for name, _ in self.model.named_buffers()} - set(self.wanted)
        found: dict[str, StoredTensor] = {}
        unexpected = []
        has_head = False
        for raw, tensor in stored.items():
            key = self.model.key_map(raw)
            if key is None:
                continue
            name = next((n for n in (key, prefix + key, key.removeprefix(prefix)) if n in self.wanted), None)
            if name is not None:
                has_head |= not name.startswith(prefix)
                found[name] = tensor
            elif (not self.bare or key.startswith(prefix)) and not {key, key.removeprefix(prefix)} & derived:
                unexpected.append(raw)
        tied = self.model.tied()
        for name, source in tied.items():
            if source not in found and name in found:
                found[source] = found[name]
            found.pop(name, None)
        missing = [name for name in self.wanted if name not in found and name not in tied]
        if missing and not self.bare and not has_head and not any(name.startswith(prefix) for name in missing):
            warnings.warn(
                f"{self.folder} holds a model without {_listed(missing)}: these are newly initialised, and the model "
                "must be trained before its output means anything",
                stacklevel=4,
            )
            self.fresh = {name.rpartition(".")[0] for name in missing}
            missing = []
        self._report(missing, unexpected, found)
        return found

    def _report(self, missing: list[str], unexpected: list[str], found: dict[str, StoredTensor]) -> None:
        what = type(self.model).__name__
        if missing:
            raise CheckpointError(f"{self.folder} lacks {_listed(missing)}, which {what} needs")
        if unexpected:
            raise CheckpointError(f"{self.folder} holds {_listed(unexpected)}, which {what} has no place for")
        for name, tensor in found.items():
            shape = tuple(self.wanted[name].shape)
            if tensor.shape != shape:
                raise CheckpointError(f"{tensor.path}: {name} has shape {tensor.shape}; {what} expects {shape}")


def _all_tensors(model: nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
