"""Which implementation serves a call of an op, and why the others do not.

The choice is a pure function of the arguments' shapes, dtypes and device and of the backend in force, never of their
values; an op's first argument is a tensor, and its device is the call's. The backend is `auto` (the fastest
implementation that supports the call), or the name of one implementation, which then serves the call or raises. It
comes from `FASTSPEECH_BACKEND` when the library is loaded and from `use_backend` afterwards.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastspeech.kernels import extension

if TYPE_CHECKING:
    from fastspeech.kernels.op import Op

BACKENDS = ("auto", "reference", "triton", "cuda")


class BackendError(RuntimeError):
    """A backend that was named cannot serve the call; the message says why."""


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}: FASTSPEECH_BACKEND and use_backend take {', '.join(BACKENDS)}")
    return name


_backend = _checked(os.environ.get("FASTSPEECH_BACKEND", "auto"))


def backend() -> str:
    """The backend in force in this process."""
    return _backend


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every op by backend `name` (`auto`, `reference`, `triton` or `cuda`) within the block, process-wide."""
    global _backend
    before, _backend = _backend, _checked(name)
    try:
        yield
    finally:
        _backend = before


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op beside its reference.

    `module` holds `launch(*args)`, which takes the reference's arguments, and is imported at the first call it
    serves. `limits(*args)` gives the reason why a call cannot be served, or None. `on_cpu`: whether `auto` takes it for
    CPU tensors, as it does where `pytest bench` shows it to be faster than the reference; `on_cuda`: whether it takes
    CUDA tensors at all. `backward`: the module of a fused backward, if there is one, which holds
    `launch(grads, *args, needs)`: the gradients of the arguments that `needs` marks, of the outputs' gradients or None;
    `backward_limits(*args)` says what it cannot serve of what the forward serves. With `backward_outputs` it is
    `launch(grads, outputs, *args, needs)`, and autograd keeps the outputs for it.
    """

    name: str
    module: str
    limits: Callable[..., str | None]
    on_cpu: bool = False
    on_cuda: bool = True
    backward: str | None = None
    backward_limits: Callable[..., str | None] = lambda *args: None
    backward_outputs: bool = False

    def load(self) -> ModuleType:
        return importlib.import_module(self.module)

    def pull_back(
        self, grads: list[Tensor | None], outputs: list[Tensor], args: tuple[Any, ...], needs: list[bool]
    ) -> list[Tensor]:
        """The gradients of the arguments that need one, by the fused backward, of a call with those outputs."""
        assert self.backward is not None
        launch = importlib.import_module(self.backward).launch
        return launch(grads, *([outputs] if self.backward_outputs else []), *args, needs)

    def refusal(self, args: tuple[Any, ...]) -> str | None:
        """Why this implementation cannot serve a call with `args`; None where it can."""
        device = args[0].device
        if device.type == "cuda" and not self.on_cuda:
            return f"its {self.name} implementation takes CPU tensors only"
        return device_refusal(self.name, device) or self.limits(*args)


def interpreting() -> bool:
    """Whether Triton kernels run in its interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def device_refusal(name: str, device: torch.device) -> str | None:
    """Why implementation `name` cannot run on `device`, whatever the op; None where it can."""
    if name == "cuda":
        if (refusal := extension.refusal(device.type)) is not None:
            return refusal
        if device.type == "cuda" and _capability(device.index or 0) < (8, 0):
            return "the extension needs compute capability 8.0 or newer"
    if name == "triton":
        if not _has_triton():
            return "triton is not installed"
        if interpreting():
            return None if device.type == "cpu" else "TRITON_INTERPRET=1 runs kernels on CPU tensors only"
        if device.type != "cuda":
            return f"Triton kernels need CUDA tensors, these are on {device.type}"
        if _capability(device.index or 0) < (8, 0):
            return "Triton kernels need compute capability 8.0 or newer"
    return None


def candidates(op: Op, device: torch.device) -> tuple[Implementation, ...]:
    """The implementations that may serve a call on `device` under the backend in force, the first choice first."""
    if _backend == "auto":
        return op.implementations if device.type != "cpu" else tuple(i for i in op.implementations if i.on_cpu)
    return tuple(i for i in op.implementations if i.name == _backend)


def choose_inline(op: Op, args: tuple[Any, ...]) -> bool:
    """Whether a call is served by the reference because its tensors are on the CPU, without asking any further."""
    if _backend == "reference" or (_backend == "auto" and not op.on_cpu):
        return args[0].device.type == "cpu"
    return False


def choose_backward(op: Op, args: tuple[Any, ...]) -> Implementation | None:
    """The implementation that serves `op(*args)` if its backward is fused; None where the reference is recomputed."""
    for implementation in candidates(op, args[0].device):
        if implementation.refusal(args) is None:
            if implementation.backward is None or implementation.backward_limits(*args) is not None:
                return None
            return implementation
    return None


_warned: set[str] = set()


def choose(op: Op, args: tuple[Any, ...]) -> Callable[..., Any]:
    """The function that serves `op(*args)` under the backend in force.

    Raises:
        BackendError: a backend was named that cannot serve the call.
    """
    device = args[0].device
    refusals = []
    for implementation in candidates(op, device):
        refusal = implementation.refusal(args)
        if refusal is None:
            return implementation.load().launch
        refusals.append(f"{implementation.name}: {refusal}")
    if _backend == "reference" or (_backend == "auto" and device.type == "cpu"):
        return op.reference
    if _backend != "auto":
        reason = "; ".join(refusals) or f"{op.name} has no {_backend} implementation"
        raise BackendError(f"{op.name} cannot be served by FASTSPEECH_BACKEND={_backend}: {reason}")
    if op.name not in _warned:
        _warned.add(op.name)
        reason = "; ".join(refusals)
        warnings.warn(
            f"fastspeech: {op.name} runs its PyTorch reference on {args[0].device}, correct but slower ({reason})",
            RuntimeWarning,
            stacklevel=2,
        )
    return op.reference
