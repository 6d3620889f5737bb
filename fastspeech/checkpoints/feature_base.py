"""What an extractor returns, and how its settings are saved and loaded."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from fastspeech.audio.split import split_at_quiet
from fastspeech.checkpoints.files import blaming, locate, read_json, read_json_if_any, write_json

FEATURES_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"


class BatchFeature(dict[str, Any]):
    """The inputs of a model by name: a dictionary whose items are attributes too.

    `model.generate(**inputs)` works, and `inputs.to(device)` moves the tensors in place.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        tensor_type: str | None = None,
        skip_tensor_conversion: Collection[str] = (),
    ) -> None:
        """Copy `data` shallowly, and convert it as `convert_to_tensors` does."""
        super().__init__(data or {})
        self.convert_to_tensors(tensor_type, skip_tensor_conversion)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no item {name!r}; there are {', '.join(self) or 'none'}") from None

    def convert_to_tensors(self, tensor_type: str | None, skip_tensor_conversion: Collection[str] = ()) -> Self:
        """Make every item a torch tensor ("pt") or a NumPy array ("np"), except those named to skip and strings.

        Raises:
            ValueError: an unknown tensor type, or an item whose rows have unequal lengths.
        """
        if tensor_type is None:
            return self
        if tensor_type not in ("pt", "np"):
            raise ValueError(f"return_tensors must be 'pt', 'np' or None, got {tensor_type!r}")
        convert = _to_torch if tensor_type == "pt" else _to_numpy
        for name, value in self.items():
            if name in skip_tensor_conversion or _holds_text(value):
                continue
            try:
                self[name] = convert(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise ValueError(f"{name} does not make one tensor ({error}); padding=True makes rows equal") from error
        return self

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the tensors as `torch.Tensor.to(...)` does, in place, and return this object.

        A dtype is applied to floating tensors only: ids and masks keep theirs.
        """
        first = args[:1]
        if first and not isinstance(first[0], (str, int, torch.device, torch.dtype)):
            raise ValueError(f"expected a device or a dtype, got {first[0]!r}")
        where = {name: value for name, value in kwargs.items() if name != "dtype"}
        if first and not isinstance(first[0], torch.dtype):
            where["device"] = first[0]
        for name, value in self.items():
            if isinstance(value, torch.Tensor):
                self[name] = value.to(*args, **kwargs) if value.is_floating_point() else _moved(value, **where)
        return self


class FeatureExtractor:
    """Base of the feature extractors: an `__init__` whose keyword arguments are the settings, kept as attributes.

    Unknown settings are kept as attributes and written out again.

    Attributes:
        model_input_names: names of the items the extractor returns.
        sampling_rate: of the samples it takes, in Hz.
    """

    model_input_names: ClassVar[list[str]] = []
    sampling_rate: int

    def __init__(self, **kwargs: Any) -> None:
        for name, value in kwargs.items():
            if name not in ("processor_class", "feature_extractor_type"):
                setattr(self, name, value)

    @property
    def minimum_samples(self) -> int:
        """The fewest samples a clip may have."""
        return 1

    def split(self, samples: torch.Tensor) -> list[tuple[int | None, int, int]]:
        """The chunks (index, start, end) that a clip (n,) is cut into, of 30 s at most, each but the last cut at the
        quietest place behind its 15th second; index None where it is shorter."""
        return split_at_quiet(samples, self.sampling_rate, max_audio_clip_s=30.0, overlap_chunk_second=15.0)

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
        """The extractor of a folder or hub id; `overrides` replace its settings.

        Raises:
            CheckpointError: no readable settings there.
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
        """As `from_pretrained`, for a folder at hand.

        transformers 5 writes the settings into processor_config.json, under "feature_extractor", transformers 4 into
        preprocessor_config.json. The former wins, as it does in transformers 5.
        """
        values = read_json_if_any(folder, PROCESSOR_FILE).get("feature_extractor")
        file = PROCESSOR_FILE
        if not isinstance(values, dict):
            values, file = read_json(folder, FEATURES_FILE), FEATURES_FILE
        with blaming(folder / file):
            return cls.from_dict(values, **overrides)

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> Self:
        """The extractor of a dictionary such as `to_dict` gives."""
        return cls(**values | overrides)

    def to_dict(self) -> dict[str, Any]:
        """Every setting, and the class's name as `feature_extractor_type`. What an extractor derives from its settings
        it keeps under names that begin with an underscore.
        """
        values = {name: value for name, value in vars(self).items() if name[0] != "_"}
        return values | {"feature_extractor_type": type(self).__name__}

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Write preprocessor_config.json into `save_directory`, which is made where it is missing."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder, FEATURES_FILE, self.to_dict())


def padded_length(
    sizes: Sequence[int], padding: bool | str | None, max_length: int | None, multiple: int | None
) -> int | None:
    """The length that rows of these sizes are padded to, by an extractor's arguments; None for no padding.

    Raises:
        ValueError: an unknown kind of padding, or "max_length" without one.
    """
    if padding in (False, None, "do_not_pad"):
        return None
    if padding not in (True, "longest", "max_length"):
        raise ValueError(f"padding must be 'longest', 'max_length' or False, got {padding!r}")
    if padding == "max_length" and max_length is None:
        raise ValueError("padding='max_length' needs max_length")
    target = max_length if padding == "max_length" and max_length is not None else max(sizes)
    return -(-target // multiple) * multiple if multiple else target


def _moved(value: torch.Tensor, device: Any = None, **kwargs: Any) -> torch.Tensor:
    return value if device is None else value.to(device, **kwargs)


def _holds_text(value: Any) -> bool:
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value is None or isinstance(value, (str, bytes, dict))


def _to_torch(value: Any) -> torch.Tensor:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
        return torch.stack(list(value))
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], np.ndarray):
        value = np.stack(value)
    return torch.as_tensor(value)


def _to_numpy(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        return value.cpu().numpy()
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], torch.Tensor):
        return torch.stack(list(value)).cpu().numpy()
    return np.asarray(value)
