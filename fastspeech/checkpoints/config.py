"""The settings of a model: config.json in and out."""

import copy
import json
import os
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from fastspeech.checkpoints.files import CONFIG_FILE, blaming, locate, read_json, write_json


class PretrainedConfig:
    """Base of the model configurations.

    A subclass sets `model_type`, names its fields in `__init__` with transformers' names and defaults, sets each as an
    attribute, and passes the remaining `**kwargs` on. Fields nobody names are kept as attributes and written out
    again, so nothing of a foreign config.json is lost. A field that holds another configuration is built from its
    dictionary by the subclass.

    Args:
        attn_implementation: "eager" or "sdpa", which are served alike: attention is one op here, fused where nothing
            needs its weights; with `output_attentions` they are computed and returned. Another implementation is not at
            hand, and an error. It is no part of the file.

    Attributes:
        model_type: the name under which config.json announces this configuration.
        attribute_map: other names of a field, `{alias: field}`, for reading and setting.
    """

    model_type: ClassVar[str] = ""
    attribute_map: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        *,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        architectures: list[str] | None = None,
        is_encoder_decoder: bool = False,
        return_dict: bool = True,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        attn_implementation: str | None = None,
        **kwargs: Any,
    ) -> None:
        check_attention(attn_implementation)
        # transformers 4 wrote `torch_dtype`, 5 writes `dtype`
        self.dtype = parse_dtype(dtype if dtype is not None else torch_dtype)
        self.architectures = architectures
        self.is_encoder_decoder = is_encoder_decoder
        self.return_dict = return_dict
        self.output_attentions = output_attentions
        self.output_hidden_states = output_hidden_states
        for name, value in kwargs.items():
            if name not in _NOT_KEPT:
                setattr(self, name, value)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str | None = "main",
        **overrides: Any,
    ) -> Self:
        """The configuration in config.json of a folder or hub id; `overrides` replace its fields.

        Raises:
            CheckpointError: no readable config.json, or one of another model.
        """
        folder = locate(
            pretrained_model_name_or_path,
            revision=revision,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
            token=token,
        )
        return cls.from_folder(folder, **overrides)

    @classmethod
    def from_folder(cls, folder: Path, **overrides: Any) -> Self:
        """As `from_pretrained`, for a folder at hand."""
        values = read_json(folder, CONFIG_FILE)
        with blaming(folder / CONFIG_FILE):
            return cls.from_dict(values, **overrides)

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> Self:
        """The configuration of a dictionary such as `to_dict` gives.

        A dictionary of a composite model serves too, where one of its parts is of this class's `model_type`.

        Raises:
            ValueError: the dictionary is of another model.
        """
        found = values.get("model_type", cls.model_type)
        if found != cls.model_type:
            parts = [part for part in values.values() if isinstance(part, dict)]
            values = next((part for part in parts if part.get("model_type") == cls.model_type), {})
            if not values:
                raise ValueError(f"the model type is {found!r}; {cls.__name__} reads {cls.model_type!r}")
        return cls(**{name: value for name, value in values.items() if name != "model_type"} | overrides)

    def to_dict(self) -> dict[str, Any]:
        """Every field, as JSON knows it."""
        values: dict[str, Any] = {"model_type": self.model_type}
        for name, value in vars(self).items():
            if isinstance(value, PretrainedConfig):
                values[name] = value.to_dict()
            elif isinstance(value, torch.dtype):
                values[name] = str(value).removeprefix("torch.")
            else:
                values[name] = copy.deepcopy(value)
        return values

    def to_json_string(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write config.json into `save_directory`, which is made where it is missing."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder, CONFIG_FILE, self.to_dict())

    def __getattr__(self, name: str) -> Any:
        field = type(self).attribute_map.get(name)
        if field is None:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}")
        return getattr(self, field)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(type(self).attribute_map.get(name, name), value)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


_NOT_KEPT = frozenset({"model_type", "transformers_version", "_name_or_path", "name_or_path", "_commit_hash"})
"""Fields that say who wrote the file or where it lay, which would be wrong in the next file."""


def check_attention(implementation: str | None) -> None:
    """Raise ValueError for an implementation of attention that there is not."""
    if implementation not in (None, "eager", "sdpa"):
        raise ValueError(f"attn_implementation must be 'eager' or 'sdpa', got {implementation!r}")


def parse_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating dtype from itself or its name ("bfloat16"); None stays None.

    Raises:
        ValueError: not the name of a floating dtype.
    """
    if dtype is None:
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype must be a floating dtype such as 'float32' or torch.bfloat16, got {dtype!r}")
    return found
