"""Ops: every implementation, the reference as it is and compiled, and a peer where there is one."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from fastspeech.bench import record
from fastspeech.bench.aims import OP_CASES
from fastspeech.bench.ceilings import bound
from fastspeech.bench.peers import PEERS
from fastspeech.bench.plan import Plan, Row, Task
from fastspeech.bench.timing import Function, Times, graphed, interleaved
from fastspeech.kernels.dispatch import use_backend
from fastspeech.kernels.op import OPS, Op
from fastspeech.kernels.spec import Case, OpSpec, all_specs
from fastspeech.kernels.tolerance import Tolerance
from fastspeech.kernels.verify import Subject

GRAPH_CALLS = 20

PEER = Tolerance(16.0, 64.0, "a peer need not be as exact as our kernels, but must compute the same")


def tasks(plan: Plan, ceilings: dict[str, Any]) -> list[Task]:
    """What there is to measure, in the dtype that models use on the device: first the cases that have an aim, on a GPU,
    then a model case of each op, then another of each, so that a run cut short has something of all."""
    chosen = [spec for spec in all_specs() if plan.wants(spec.name)]
    of_models = [[(spec, case) for case in spec.cases if case.kind == "model"] for spec in chosen]
    cases = [pair for turn in itertools.zip_longest(*of_models) for pair in turn if pair is not None]
    if plan.device.type == "cuda" or plan.rehearsal:
        cases = [(spec, case) for spec in chosen for case in OP_CASES.get(spec.name, ())] + cases
    found: list[Task] = []
    for spec, case in cases:
        if plan.rehearsal:
            small = next(c for c in spec.cases if c.kind == "ordinary")
            case = dataclasses.replace(case, shape=small.shape)
        dtype = plan.dtype if plan.dtype in spec.dtypes else spec.dtypes[0]
        run = functools.partial(measure, spec, case, dtype, plan, ceilings)
        found.append((f"{spec.name} {case.name}", run))
    return found


def measure(
    spec: OpSpec, case: Case, dtype: torch.dtype, plan: Plan, ceilings: dict[str, Any], compiled: bool | None = None
) -> Iterator[Row]:
    """The rows of one case. A contender whose result is wrong gets a row with a fault and no time."""
    gate = _Gate(spec, case, dtype, "reference", str(plan.device))
    inputs = gate.inputs()
    pristine = {name: v.clone() if isinstance(v, Tensor) else v for name, v in inputs.items()}
    contenders = _contenders(spec, inputs, plan.compiled if compiled is None else compiled)
    cost = spec.cost(dtype.itemsize, **case.shape)
    least, binds = bound(ceilings, cost.bytes, cost.flops, gate.dtype_name)
    what = {
        "kind": "op",
        "name": spec.name,
        "case": case.name,
        "dtype": gate.dtype_name,
        "bytes": cost.bytes,
        "flops": cost.flops,
        "bound_s": least,
        "bound_by": binds,
    }
    able = {}
    for name, function in contenders.items():
        ours = name in ("triton", "cuda", "reference")
        rule = spec if ours else dataclasses.replace(spec, tolerance=PEER)
        fault = _fault(dataclasses.replace(gate, spec=rule), inputs, pristine, function)
        if fault:
            yield {**what, "contender": name, "timing": "", "fault" if ours else "left_out": fault}
        else:
            able[name] = function
    for timing, taken in _timings(able, plan).items():
        for name, times in taken.items():
            yield record.row(times, **what, contender=name, timing=timing, bound_share=least / times.median)


def _contenders(spec: OpSpec, inputs: dict[str, Any], compiled: bool) -> dict[str, Function]:
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
        # Left to itself a second case of an op would be compiled for shapes that vary.
        torch.compiler.reset()
        graph = torch.compile(op.reference, dynamic=False)
        contenders["compiled reference"] = functools.partial(graph, *_arguments(spec, inputs))
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


@dataclasses.dataclass(frozen=True)
class _Gate(Subject):
    """Judges all contenders by one oracle."""

    made: dict[bool, tuple[Tensor, ...]] = dataclasses.field(default_factory=dict, compare=False)

    def run(self, inputs: Mapping[str, Any], backend: str | None = None) -> tuple[Tensor, ...]:
        wide = any(isinstance(v, Tensor) and v.dtype == torch.float64 for v in inputs.values())
        if wide not in self.made:
            self.made[wide] = super().run(inputs, backend)
        return self.made[wide]


def _fault(gate: _Gate, inputs: dict[str, Any], pristine: dict[str, Any], function: Function) -> str:
    """Why a contender's time would be worth nothing; "" where its result is right."""
    written = OPS[gate.spec.name].mutates
    try:
        for name in written:
            inputs[name].copy_(pristine[name])
        result = function()
        outputs = tuple(inputs[name] for name in written) if written else result
        outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
        gate.judge(gate.specified(outputs, inputs), pristine)
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return ""


def _timings(functions: dict[str, Function], plan: Plan) -> dict[str, dict[str, Times]]:
    taken = {"warm": interleaved(functions, plan.device, plan.budget_s)}
    if plan.device.type == "cuda":
        taken["cold"] = interleaved(functions, plan.device, plan.budget_s, cold=True)
        taken["graph"] = _graph_times(functions, plan.device, plan.budget_s)
    elif plan.rehearsal:
        taken |= {"cold": taken["warm"], "graph": taken["warm"]}
    return taken


def _graph_times(functions: dict[str, Function], device: torch.device, budget_s: float) -> dict[str, Times]:
    replays: dict[str, Callable[[], Any]] = {}
    for name, function in functions.items():
        try:
            replays[name] = graphed(function, device, GRAPH_CALLS)
        except RuntimeError:  # a contender that asks the GPU for a value, or is compiled into several graphs
            torch.cuda.synchronize(device)
    times = interleaved(replays, device, budget_s)
    return {name: taken.each_of(GRAPH_CALLS) for name, taken in times.items()}
