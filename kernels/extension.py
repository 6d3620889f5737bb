"""The extension: the library that csrc/ is built into, which lies beside this file and is loaded at its first use."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

LIBRARY = Path(__file__).with_name("libfastspeech.so")
BUILT = LIBRARY.exists()


def _has_kernel(op: str, key: str) -> bool:
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(f"fastspeech_csrc::{op}", key)
    except RuntimeError:  # nobody has defined it
        return False


@cache
def _fault() -> str | None:
    """Why there are no ops of the extension; None once they are loaded."""
    if not BUILT:
        return "the extension is not built (FASTSPEECH_BUILD_CUDA=1 pip install . says why)"
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        return f"the extension does not load: {error.__cause__ or error}"
    served = (room.parent.name for room in LIBRARY.parent.glob("*/cuda.py"))
    missing = [op for op in served if not _has_kernel(op, "CPU")]
    if missing:
        return f"the extension was built from other sources, without {', '.join(missing)}; install fastspeech again"
    return None


@cache
def refusal(device_type: str) -> str | None:
    """Why the extension cannot take tensors on a device of this type, whatever the op; None where it can."""
    if device_type not in ("cpu", "cuda"):
        return f"the extension takes CPU and CUDA tensors, these are on {device_type}"
    if (fault := _fault()) is not None:
        return fault
    if device_type == "cuda" and not _has_kernel("residual_vq", "CUDA"):
        return "the extension is built without CUDA (FASTSPEECH_BUILD_CUDA=1 pip install . says why)"
    return None


def describe() -> str:
    """What the extension is good for here, in words."""
    return refusal("cpu") or refusal("cuda") or "built for CPU and CUDA tensors"
