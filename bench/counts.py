"""What a call takes beside time: memory, and the work it hands out."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastspeech.bench.timing import Function

_LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cuGraphLaunch", "cudaMemcpy", "cudaMemset")
"""How the names of calls of the CUDA runtime and driver begin that give the GPU something to do."""


_NO_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory did not suffice; libraries beside PyTorch's allocator have errors of their
    own for that."""
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)
    return told or isinstance(error, torch.OutOfMemoryError | MemoryError)


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += not function.is_view
        return function(*args, **(kwargs or {}))


def dispatched(function: Function) -> int:
    """Operators that a call hands to PyTorch, views not counted. Compiled code and graphs hide theirs."""
    with _Count() as counter:
        function()
    return counter.calls


def launches(function: Function, device: torch.device) -> dict[str, int]:
    """{"launches": calls of CUDA that start kernels, graphs or copies, "kernels": what ran on the GPU, copies too};
    empty on a CPU, and where the profiler sees nothing."""
    if device.type != "cuda":
        return {}
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        function()
        torch.cuda.synchronize(device)
    events = seen.events() or []
    ran = sum(event.device_type == DeviceType.CUDA for event in events)
    asked = sum(event.device_type == DeviceType.CPU and event.name.startswith(_LAUNCHES) for event in events)
    return {"launches": asked, "kernels": ran} if ran and asked else {}


def peak(function: Function, device: torch.device) -> int | None:
    """Most bytes that a call holds beyond what was held before: of PyTorch's memory on a GPU, of the process's resident
    memory on a CPU, where Linux lets its high-water mark be reset; else None."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # What was freed but is kept for later would be used without a trace.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmHWM")
    except (OSError, AttributeError, StopIteration):
        function()
        return None
    function()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
