"""Ops: every implementation, the reference as it is and compiled, and a peer where there is one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fastspeech.bench import record
from fastspeech.bench.ceilings import bound
from fastspeech.bench.peers import PEERS
from fastspeech.bench.timing import Function, graphed, interleaved
from fastspeech.kernels.dispatch import use_backend
from fastspeech.kernels.op import OPS, Op
from fastspeech.kernels.spec import Case, OpSpec, all_specs
from fastspeech.kernels.verify import Subject

GRAPH_CALLS = 20

Task = tuple[str, Callable[[], Iterator[dict[str, Any]]]]


def tasks(
    device: torch.device, ceilings: dict[str, Any], names: list[str], compiled: bool, budget_s: float
) -> list[Task]:
    """What there is to measure: the model cases of each op, in the dtype that models use on the device."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    found: list[Task] = []
    for spec in all_specs():
        if names and spec.name not in names:
            continue
        chosen = dtype if dtype in spec.dtypes else spec.dtypes[0]
        for case in spec.cases:
            if case.kind == "model":
                run = functools.partial(measure, spec, case, chosen, device, ceilings, compiled, budget_s)
                found.append((f"{spec.name} {case.name}", run))
    return found


def measure(
    spec: OpSpec,
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    ceilings: dict[str, Any],
    compiled: bool,
    budget_s: float,
) -> Iterator[dict[str, Any]]:
    """The rows of one case. A contender whose result is wrong gets a row with a fault and no time."""
    subject = Subject(spec, case, dtype, "reference", str(device))
    inputs = subject.inputs()
    contenders = _contenders(spec, inputs, device, compiled)
    cost = spec.cost(dtype.itemsize, **case.shape)
    least, binds = bound(ceilings, cost.bytes, cost.flops, subject.dtype_name)
    what = {
        "kind": "op",
        "name": spec.name,
        "case": case.name,
        "dtype": subject.dtype_name,
        "bytes": cost.bytes,
        "flops": cost.flops,
        "bound_s": least,
        "bound_by": binds,
    }
    able = {}
    for name, function in contenders.items():
        fault = _fault(subject, inputs, function)
        if fault:
            yield {**what, "contender": name, "timing": "", "fault": fault}
        else:
            able[name] = function
    for timing, taken in _timings(able, device, budget_s).items():
        for name, times in taken.items():
            yield record.row(times, **what, contender=name, timing=timing, bound_share=least / times.median)


def _contenders(spec: OpSpec, inputs: dict[str, Any], device: torch.device, compiled: bool) -> dict[str, Function]:
    def served(backend: str) -> Any:
        with use_backend(backend):
            return spec.call(**inputs)

    op = OPS[spec.name]
    contenders: dict[str, Function] = {}
    for implementation in op.implementations:
        if implementation.refusal(_arguments(spec, inputs)) is None:
            contenders[implementation.name] = functools.partial(served, implementation.name)
    contenders["reference"] = functools.partial(served, "reference")
    if compiled:
        contenders["compiled reference"] = functools.partial(torch.compile(op.reference), *_arguments(spec, inputs))
    for name, make in PEERS.get(spec.name, {}).items():
        peer = make(inputs)
        if peer is not None:
            contenders[name] = peer
    return contenders


def _arguments(spec: OpSpec, inputs: dict[str, Any]) -> tuple[Any, ...]:
    """The op's own arguments, as the public function hands them on."""
    seen: list[tuple[Any, ...]] = []

    def call(op: Op, *args: Any) -> Any:
        seen.append(args)
        return op.reference(*args)

    with mock.patch.object(Op, "__call__", call):
        spec.call(**inputs)
    return seen[0]


def _fault(subject: Subject, inputs: dict[str, Any], function: Function) -> str:
    """Why a contender's time would be worth nothing; "" where its result is right."""
    try:
        result = function()
        written = OPS[subject.spec.name].mutates
        outputs = tuple(inputs[name] for name in written) if written else result
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        subject.judge(subject.specified(outputs, inputs), subject.inputs())
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:500]
    return ""


def _timings(functions: dict[str, Function], device: torch.device, budget_s: float) -> dict[str, dict[str, Any]]:
    taken = {"warm": interleaved(functions, device, budget_s)}
    if device.type == "cuda":
        taken["cold"] = interleaved(functions, device, budget_s, cold=True)
        taken["graph"] = _graph_times(functions, device, budget_s)
    return taken


def _graph_times(functions: dict[str, Function], device: torch.device, budget_s: float) -> dict[str, Any]:
    replays = {}
    for name, function in functions.items():
        try:
            replays[name] = graphed(function, device, GRAPH_CALLS)
        except RuntimeError:  # a contender that asks the GPU for a value, or is compiled into several graphs
            torch.cuda.synchronize(device)
    times = interleaved(replays, device, budget_s)
    return {name: type(t)([sample / GRAPH_CALLS for sample in t.samples]) for name, t in times.items()}
