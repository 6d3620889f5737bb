"""A run's results as JSON, with what a reader needs to judge and to repeat them."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastspeech.bench.timing import Times

PACKAGES = ("fastspeech", "torch", "triton", "transformers", "numpy", "av", "torchaudio", "flash_attn")

_CLOCKS = (
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "clocks_event_reasons.active",
    "driver_version",
)
"""Fields of nvidia-smi."""


def new(device: torch.device) -> dict[str, Any]:
    """An empty record of this machine and installation."""
    return {
        "device": describe(device),
        "versions": {"python": platform.python_version(), "cuda": torch.version.cuda, **_versions()},
        "runs": [],
        "rows": [],
    }


def begin(record: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Notes a run that adds rows to the record: its command, commit and clocks. Returns the note.

    Raises:
        ValueError: the record is of another device or other versions.
    """
    fresh = new(device)
    if record["versions"] != fresh["versions"] or record["device"]["name"] != fresh["device"]["name"]:
        raise ValueError("the record is of another device or other versions: begin a new one, by --output")
    note = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "commit": _commit(),
        "clocks": clocks(device),
    }
    record["runs"].append(note)
    return note


def row(times: Times, **what: Any) -> dict[str, Any]:
    """One measurement: `what` was measured, and its samples in seconds."""
    low, high = times.quartiles
    samples = [float(f"{sample:.5g}") for sample in times.samples]
    return {**what, "median_s": times.median, "quartiles_s": [low, high], "samples_s": samples}


def key(row: dict[str, Any]) -> tuple[str, ...]:
    """What a row measured, the same in every record."""
    return tuple(str(row.get(name, "")) for name in ("kind", "name", "case", "dtype", "contender", "timing"))


def save(record: dict[str, Any], path: Path) -> None:
    """Writes all or nothing, so that an interrupted run keeps what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def default_path(device: torch.device, folder: Path) -> Path:
    """<folder>/<device>/<date>.json"""
    name = "".join(c if c.isalnum() else "-" for c in describe(device)["name"].lower()).strip("-")
    return folder / "-".join(filter(None, name.split("-"))) / f"{datetime.date.today().isoformat()}.json"


def describe(device: torch.device) -> dict[str, Any]:
    """The device's name and its size."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": getattr(properties, "L2_cache_size", None),
        }
    name = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return {"name": name, "cores": os.cpu_count(), "threads": torch.get_num_threads()}


def clocks(device: torch.device) -> dict[str, str]:
    """Clocks, power and temperature of a GPU at this moment, and its driver; empty on a CPU and without nvidia-smi."""
    if device.type != "cuda":
        return {}
    # CUDA numbers the devices that it is let see, nvidia-smi all of them; a UUID is the same to both.
    which = str(getattr(torch.cuda.get_device_properties(device), "uuid", device.index or 0))
    which = f"GPU-{which}" if "-" in which and not which.startswith("GPU-") else which
    command = ["nvidia-smi", f"--query-gpu={','.join(_CLOCKS)}", "--format=csv,noheader", f"--id={which}"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(_CLOCKS, (value.strip() for value in found.split(",")), strict=False))


def _commit() -> str | None:
    """The checkout's commit, with a + where files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed.stdout else "")


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
