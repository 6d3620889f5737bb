"""Where a checkpoint's files are, and reading and writing them safely.

A checkpoint is a folder. Whatever is in it may have been written by anybody: no file outside it is ever read, and
what cannot be read is a `CheckpointError` that names the file.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from fastspeech.errors import CheckpointError

CONFIG_FILE = "config.json"

_SETTINGS_PATTERNS = ["*.json", "*.txt", "*.model"]
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def locate(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    token: str | bool | None = None,
    weights: bool = False,
) -> Path:
    """The folder of a checkpoint: `name_or_path` itself where it is one, else the downloaded snapshot of that hub id.

    Only files at the top of the repository are fetched: settings and vocabularies, and with `weights` the safetensors
    files (the `*.bin` files only where there are none). What was fetched before is not fetched again, unless
    `force_download` says so.

    Raises:
        CheckpointError: no such folder, or the hub does not give it.
    """
    name = os.fspath(name_or_path)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return folder
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; give the checkpoint's folder")
    if not isinstance(name_or_path, str) or name.startswith((".", "~")) or not _HUB_ID.fullmatch(name):
        raise CheckpointError(f"there is no folder {name!r}, and it is not a hub id such as 'organisation/model'")

    from huggingface_hub import snapshot_download

    def download(patterns: list[str]) -> Path:
        try:
            return Path(
                snapshot_download(
                    name,
                    revision=revision,
                    cache_dir=None if cache_dir is None else Path(cache_dir),
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                    allow_patterns=patterns,
                    ignore_patterns=["*/*"],
                )
            )
        except (OSError, ValueError) as error:
            where = "in the local cache" if local_files_only else "on the hub"
            at = f" at revision {revision!r}" if revision else ""
            raise CheckpointError(f"{name}{at} is neither a folder nor available {where}: {error}") from error

    if not weights:
        return download(_SETTINGS_PATTERNS)
    folder = download([*_SETTINGS_PATTERNS, "*.safetensors"])
    if not any(folder.glob("*.safetensors")):
        folder = download([*_SETTINGS_PATTERNS, "*.bin"])
    return folder


def inside(folder: Path, name: str) -> Path:
    """The path of the file `name` in `folder`.

    Links are followed: one that ends outside the folder is refused, except into the blobs of the hub cache that the
    folder is a snapshot of.

    Raises:
        CheckpointError: the name leaves the folder, or cannot be a file name.
    """
    if PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor or ".." in re.split(r"[/\\]", name):
        raise CheckpointError(f"{folder}: the file name {name!r} leads out of the folder")
    path = folder / name
    try:
        target = path.resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{folder}: {name!r} cannot be a file name: {error}") from error
    if not any(target.is_relative_to(root) for root in _roots(folder.resolve())):
        raise CheckpointError(f"{path} is a link out of the folder, to {target}; put the file itself there")
    return path


def _roots(folder: Path) -> list[Path]:
    """Where the files of a folder may lie: in it, and for a snapshot (<cache>/<repository>/snapshots/<commit>) in the
    blobs of the repository or in those that huggingface_hub 2 shares among repositories.
    """
    if folder.parent.name != "snapshots":
        return [folder]
    return [folder, folder.parents[1] / "blobs", folder.parents[2] / "blobs"]


def read_json(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in the file `name` of `folder`.

    Raises:
        CheckpointError: no such file, not JSON, or not an object.
    """
    path = inside(folder, name)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{folder} has no {name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def read_json_if_any(folder: Path, name: str) -> dict[str, Any]:
    """As `read_json`, and `{}` where the folder has no such file."""
    return read_json(folder, name) if inside(folder, name).exists() else {}


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Turn what bad values in `path` make their reader raise into a CheckpointError that names it."""
    try:
        yield
    except CheckpointError:
        raise
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, in the same folder, which becomes `path` when the block ends well.

    A reader sees the old file or the whole new one, and a failed write leaves the old one.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.touch()
        mode = draft.stat().st_mode
        yield draft
        # safetensors makes a file that its owner alone can read.
        draft.chmod(mode)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def write_json(folder: Path, name: str, value: dict[str, Any]) -> Path:
    """Write a JSON object to the file `name` of `folder`, keys sorted, as transformers does. Returns its path."""
    path = folder / name
    with replacing(path) as draft:
        draft.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path
