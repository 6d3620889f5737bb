"""The tensors of a checkpoint: safetensors, whole or sharded, in and out; `pytorch_model.bin` in.

Everything is checked before anything big is read: `open_weights` reads only the headers of safetensors files.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fastspeech.checkpoints.files import inside, read_json, replacing, write_json
from fastspeech.errors import CheckpointError

SAFETENSORS_FILE = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
BIN_FILE = "pytorch_model.bin"
BIN_INDEX = "pytorch_model.bin.index.json"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that has not been read yet. `read()` gives it, on the CPU; large ones are mapped, not copied."""

    path: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], torch.Tensor]


def open_weights(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint folder by name, unread.

    The first of these that is there: model.safetensors, its shards, pytorch_model.bin, its shards (transformers'
    order). A .bin file is read with `weights_only=True`: it can hold tensors, and no code.

    Raises:
        CheckpointError: no weights, a missing, truncated or unsafe file, a shard named outside the folder, or an index
            that does not agree with its shards.
    """
    for whole, index, read in (
        (SAFETENSORS_FILE, SAFETENSORS_INDEX, open_safetensors),
        (BIN_FILE, BIN_INDEX, _open_bin),
    ):
        if inside(folder, whole).exists():
            return read(inside(folder, whole))
        if inside(folder, index).exists():
            return _open_shards(folder, index, read)
    raise CheckpointError(f"{folder} has no weights: no {SAFETENSORS_FILE}, {BIN_FILE}, or index of their shards")


def _open_shards(folder: Path, index: str, read: Callable[[Path], dict[str, StoredTensor]]) -> dict[str, StoredTensor]:
    home = read_json(folder, index).get("weight_map")
    if not isinstance(home, dict) or not home or not all(isinstance(shard, str) for shard in home.values()):
        raise CheckpointError(f"{folder / index} has no weight_map from tensor names to shard files")
    paths = {shard: inside(folder, shard) for shard in dict.fromkeys(home.values())}
    for shard, path in paths.items():
        if not path.is_file():
            raise CheckpointError(f"{folder / index} names the shard {shard}, which is not in the folder")
    shards = {shard: read(path) for shard, path in paths.items()}
    for name, shard in home.items():
        if name not in shards[shard]:
            raise CheckpointError(f"{folder / index} places {name} in {shard}, which does not hold it")
    return {name: shards[shard][name] for name, shard in home.items()}


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one safetensors file by name, unread.

    Raises:
        CheckpointError: the file is damaged or holds what is no tensor of a known type.
    """
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    tensors = {}
    for name in file.keys():  # noqa: SIM118 (a safetensors handle is no mapping)
        header = file.get_slice(name)
        dtype = _DTYPES.get(header.get_dtype())
        if dtype is None:
            raise CheckpointError(f"{path}: {name} is of the unsupported type {header.get_dtype()}")
        tensors[name] = StoredTensor(path, tuple(header.get_shape()), dtype, _reader(file, name))
    return tensors


def _reader(file: safe_open, name: str) -> Callable[[], torch.Tensor]:
    return lambda: file.get_tensor(name)


def _open_bin(path: Path) -> dict[str, StoredTensor]:
    # only the zip format of torch >= 1.6 can be mapped
    with open(path, "rb") as file:
        mapped = file.read(4) == b"PK\x03\x04"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged file makes torch.load raise almost anything
        raise CheckpointError(f"{path} is not a whole file of tensors alone: {error}") from error
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not tensors by name")
    tensors = {}
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise CheckpointError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor")
        tensors[name] = StoredTensor(path, tuple(value.shape), value.dtype, _constant(value.detach()))
    return tensors


def _constant(value: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: value


def save_weights(tensors: Mapping[str, torch.Tensor], folder: Path, max_shard_size: int | str = "5GB") -> None:
    """Write tensors to model.safetensors, or to shards and their index where they exceed `max_shard_size`.

    Weights of an earlier save are removed from the folder once the new ones are there.
    """
    limit = parse_size(max_shard_size)
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size

    written: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = SAFETENSORS_FILE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with replacing(folder / file) as draft:
            part = {name: tensors[name].detach().cpu().contiguous() for name in names}
            save_file(part, draft, metadata={"format": "pt"})
        written |= dict.fromkeys(names, file)
    keep = set(written.values())
    if len(shards) > 1:
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        write_json(folder, SAFETENSORS_INDEX, {"metadata": {"total_size": total}, "weight_map": written})
        keep.add(SAFETENSORS_INDEX)
    for old in [*folder.glob("model-*-of-*.safetensors"), folder / SAFETENSORS_FILE, folder / SAFETENSORS_INDEX]:
        if old.name not in keep:
            old.unlink(missing_ok=True)


def parse_size(size: int | str) -> int:
    """Bytes from a number or a text such as "5GB", "200MB", "1GiB".

    Raises:
        ValueError: not a positive size.
    """
    units = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    text = str(size).strip().upper()
    scale = 1
    for unit, factor in units.items():
        if text.endswith(unit):
            text, scale = text.removesuffix(unit), factor
            break
    try:
        count = int(float(text) * scale)
    except (ValueError, OverflowError):
        count = 0
    if count <= 0:
        raise ValueError(f"a size is a positive number of bytes or a text such as '5GB', got {size!r}")
    return count
