"""The record of an op, from which its tests, benchmarks and documentation follow."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

import fastspeech.kernels
from fastspeech.kernels.op import OPS
from fastspeech.kernels.tolerance import RULE, Tolerance, Verdict

Kind = Literal["ordinary", "odd", "edge", "model"]


@dataclass(frozen=True)
class Case:
    """One set of input shapes.

    `ordinary`, `odd` (no size a power of two or a multiple of a tile) and `edge` (length 0 or 1, one tile exactly,
    a row shorter than the filter, ...) cases are small enough for the interpreter; `model` cases have the size a
    released model gives the op, for the ahead-of-time compiler, the benchmarks and a GPU.
    """

    name: str
    kind: Kind
    shape: Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """What a perfect implementation moves and computes."""

    bytes: float
    flops: float


def _vary(shape: Mapping[str, Any], rows: int, length: int) -> dict[str, Any]:
    along = "samples" if "samples" in shape else "frames"
    varied = {**shape, "batch": shape["batch"] + rows, along: shape[along] + length}
    return {**varied, "lengths": (1,) * varied["batch"]} if shape.get("lengths") else varied


@dataclass(frozen=True)
class OpSpec:
    """The record of one op.

    Attributes:
        name: the op, a key of `fastspeech.kernels.OPS`.
        summary: one line for the table of ops.
        call: the public function.
        inputs: `inputs(dtype, generator, **case.shape)` makes the keyword arguments of `call`, on the CPU.
        cases: the input cases.
        cost: `cost(itemsize, **case.shape)`.
        padding: `padding(**kwargs)` gives, for each padded tensor argument and for "output" (or "output.0", ...), a
            bool tensor, broadcastable to it, that is true where the contents must not matter (are not specified).
            Padding that the op defines (zeros, say) is not listed under "output".
        batched: the arguments whose first axis is the batch, or a function of the inputs that names them.
        vary: `vary(shape, rows, length)` is the shape of another call of the same model, with so many more rows in
            the batch and frames or samples in a row; it compiles nothing new.
        dtypes: the dtypes the fused kernels claim.
        tolerance: of the outputs, or of each of them; the rule where not given.
        judge: `judge(output, plain, **kwargs)` in place of the rule, for an output that is chosen and not computed:
            `plain` is what the reference makes of the same inputs in the same dtype.
        stack: reasons for which a compiled kernel may spill registers or use a stack frame, by target
            ("sm_80", ...); empty where none may.
    """

    name: str
    summary: str
    call: Callable[..., Any]
    inputs: Callable[..., dict[str, Any]]
    cases: tuple[Case, ...]
    cost: Callable[..., Cost]
    padding: Callable[..., dict[str, Tensor]] = lambda **kwargs: {}
    batched: tuple[str, ...] | Callable[..., tuple[str, ...]] = ()
    vary: Callable[[Mapping[str, Any], int, int], Mapping[str, Any]] = _vary
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)
    tolerance: Tolerance | tuple[Tolerance, ...] = RULE
    judge: Callable[..., Verdict] | None = None
    stack: Mapping[str, str] = field(default_factory=dict)

    def run(self, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The outputs of a call; of an op that writes into its arguments, these arguments."""
        result = self.call(**inputs)
        if OPS[self.name].mutates:
            return tuple(inputs[name] for name in OPS[self.name].mutates)
        return (result,) if isinstance(result, Tensor) else tuple(result)

    def by_row(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The arguments whose first axis is the batch, those that are given."""
        names = self.batched(**inputs) if callable(self.batched) else self.batched
        return {name: inputs[name] for name in names if inputs[name] is not None}


def load_spec(name: str) -> OpSpec:
    """The record of one op."""
    return importlib.import_module(f"fastspeech.kernels.{name}.spec").SPEC


def all_specs() -> list[OpSpec]:
    """The record of every op, by name."""
    rooms = [m.name for m in pkgutil.iter_modules(fastspeech.kernels.__path__) if m.ispkg]
    return [load_spec(room) for room in sorted(rooms)]


def table() -> str:
    """The table of ops in Markdown."""
    lines = ["| op | what it computes | kernels | dtypes | cases |", "|---|---|---|---|---|"]
    for spec in all_specs():
        kernels = ", ".join(i.name if i.on_cuda else f"{i.name} (CPU)" for i in OPS[spec.name].implementations)
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in spec.dtypes)
        lines.append(f"| `{spec.name}` | {spec.summary} | {kernels} | {dtypes} | {len(spec.cases)} |")
    return "\n".join(lines)
