"""What this machine has, and op by op what serves it here and why the others do not."""

import importlib.metadata
import platform
from pathlib import Path
from typing import Any

import torch

from fastspeech.kernels import BackendError, backend, dispatch, extension, use_backend
from fastspeech.kernels.op import OPS
from fastspeech.kernels.spec import OpSpec, all_specs

_PACKAGES = (
    "fastspeech",
    "torch",
    "triton",
    "numpy",
    "av",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "transformers",
)


def examine() -> dict[str, Any]:
    """The findings, ready for JSON.

    "versions": of the packages, None where there is none. "devices": what torch sees. "backend": the one in
    force. "extension": what it is good for, or why it is not there. "ops": for each op and device "served_by", and for
    each other implementation why it is not that. Each is made to compute the first of the op's ordinary cases, in the
    dtype models use there, so that what is said to serve has served; "error" tells of one that failed, and is then what
    a model would meet.
    """
    devices = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    return {
        "versions": _versions(),
        "devices": [_describe(device) for device in devices],
        "backend": backend(),
        "extension": extension.describe(),
        "ops": [_examine_op(spec, device) for spec in all_specs() for device in devices],
    }


def report(findings: dict[str, Any]) -> str:
    """The findings as tables for people."""
    versions = [[name, version or "none"] for name, version in findings["versions"].items()]
    devices = [[device["name"], device["description"]] for device in findings["devices"]]
    ops = [
        [
            row["op"],
            row["device"],
            row["served_by"] or "nothing",
            "; ".join([*filter(None, [row["error"]]), *(f"{name}: {why}" for name, why in row["others"].items())]),
        ]
        for row in findings["ops"]
    ]
    return "\n\n".join(
        [
            _table([], versions),
            _table([], devices),
            f"FASTSPEECH_BACKEND={findings['backend']}",
            f"extension: {findings['extension']}",
            _table(["op", "device", "served by", "and not by"], ops),
        ]
    )


def healthy(findings: dict[str, Any]) -> bool:
    """Whether every op is served on every device."""
    return all(row["served_by"] is not None for row in findings["ops"])


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _describe(device: torch.device) -> dict[str, Any]:
    if device.type == "cpu":
        return {"name": "cpu", "description": f"{_processor()}, {torch.get_num_threads()} threads"}
    properties = torch.cuda.get_device_properties(device)
    capability = f"{properties.major}.{properties.minor}"
    memory = properties.total_memory / 2**30
    return {"name": str(device), "description": f"{properties.name}, compute {capability}, {memory:.0f} GiB"}


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _examine_op(spec: OpSpec, device: torch.device) -> dict[str, Any]:
    dtype = torch.bfloat16 if device.type != "cpu" and torch.bfloat16 in spec.dtypes else torch.float32
    case = next(case for case in spec.cases if case.kind == "ordinary")
    made = spec.inputs(dtype, torch.Generator().manual_seed(0), **case.shape)
    inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in made.items()}
    names = [*(implementation.name for implementation in OPS[spec.name].implementations), "reference"]
    faults = {name: _fault(spec, inputs, name) for name in names}
    allowed = [implementation.name for implementation in dispatch.candidates(OPS[spec.name], device)]
    if backend() in ("auto", "reference"):
        allowed.append("reference")
    # A kernel that fails is not passed over: `auto` takes the first that does not refuse.
    chosen = next((name for name in allowed if not isinstance(faults[name], BackendError)), None)
    fault = None if chosen is None else faults[chosen]
    others = {name: _why_not(faults[name], name in allowed) for name in names if name != chosen}
    return {
        "op": spec.name,
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "served_by": None if fault is not None else chosen,
        "error": None if fault is None else f"{chosen} fails: {fault}",
        "others": others,
    }


def _fault(spec: OpSpec, inputs: dict[str, Any], name: str) -> Exception | None:
    """What comes of calling the op by that implementation."""
    try:
        with use_backend(name):
            spec.call(**inputs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
    except Exception as error:
        return error
    return None


def _why_not(fault: Exception | None, allowed: bool) -> str:
    if fault is None:
        return "could, but another goes first" if allowed else "could, but is not asked"
    if isinstance(fault, BackendError):
        return str(fault).rpartition(": ")[2]
    return f"fails: {fault}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, *rows] if head else rows
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
