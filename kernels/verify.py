"""What every implementation of every op is held to, from the op's record alone.

    [TRITON_INTERPRET=1] python -m fastspeech.kernels.verify [--backend triton] [--op NAME] [--check NAME ...]
        [--kind KIND] [--case NAME] [--dtype NAME] [--device cuda] [--json]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args
from unittest import mock

import torch
from torch import Tensor

from fastspeech.kernels import dispatch, gradients, guard
from fastspeech.kernels.op import OPS
from fastspeech.kernels.spec import Case, Kind, OpSpec, all_specs, load_spec
from fastspeech.kernels.tolerance import Verdict, judge

Inputs = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Subject:
    """One case of an op, in a dtype, served by a backend on a device."""

    spec: OpSpec
    case: Case
    dtype: torch.dtype
    backend: str
    device: str = "cpu"
    seed: int = 0
    verdicts: list[Verdict] = dataclasses.field(default_factory=list, compare=False)
    """Of every output that was judged, in order."""

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.spec.name}-{self.case.name}-{self.dtype_name}".replace(" ", "_")

    def inputs(self) -> Inputs:
        """The case's inputs, the same at every call."""
        made = self.spec.inputs(self.dtype, torch.Generator().manual_seed(self.seed), **self.case.shape)
        return {name: v.to(self.device) if isinstance(v, Tensor) else v for name, v in made.items()}

    def run(self, inputs: Mapping[str, Any], backend: str | None = None) -> tuple[Tensor, ...]:
        """The outputs of a call, by the subject's backend where no other is named.

        An op that writes into its arguments gets copies of them, and what lies around these must stay as it is.
        """
        written = {name: guard.Written(inputs[name]) for name in OPS[self.spec.name].mutates}
        with dispatch.use_backend(backend or self.backend):
            outputs = self.spec.run({**inputs, **{name: copy.tensor for name, copy in written.items()}})
        if written:
            outputs = tuple(copy.result() for copy in written.values())
        for name, copy in written.items():
            assert copy.intact(), f"something was written around {name}"
        return outputs

    @functools.cached_property
    def clean(self) -> tuple[Tensor, ...]:
        """What a plain call gives, where the op specifies it."""
        inputs = self.inputs()
        return self.specified(self.run(inputs), inputs)

    def specified(self, outputs: tuple[Tensor, ...], inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The outputs with 0 in place of elements that the op leaves unspecified."""
        hidden = self.padding(inputs)
        masks = [hidden.get(f"output.{index}", hidden.get("output")) for index in range(len(outputs))]
        return tuple(o if m is None else _filled(o, m, 0.0) for o, m in zip(outputs, masks, strict=True))

    def padding(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The record's masks of what must not matter, on the subject's device."""
        # Of numbers that are computed with it takes the shapes: they are not brought from a GPU for that.
        on_cpu = {
            name: (v.to("meta") if v.is_floating_point() else v.cpu()) if isinstance(v, Tensor) else v
            for name, v in inputs.items()
        }
        return {name: mask.to(self.device) for name, mask in self.spec.padding(**on_cpu).items()}

    def judge(self, outputs: tuple[Tensor, ...], inputs: Mapping[str, Any], rows: slice = slice(None)) -> None:
        """Hold outputs (of those rows of the batch) to the float64 oracle of a call with `inputs`."""
        exact = {n: v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for n, v in inputs.items()}
        oracles = self.specified(self.run(exact, "reference"), inputs)
        # Left to itself cuDNN convolves float32 in TF32, whose error would then be allowed to the kernel.
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            plains = self.specified(self.run(inputs, "reference"), inputs)
        assert len(outputs) == len(oracles), f"{len(outputs)} outputs where the reference gives {len(oracles)}"
        for name, got, oracle in zip(OPS[self.spec.name].mutates, outputs, oracles, strict=False):
            left = (oracle == exact[name])[rows]
            assert _equal(got[left], inputs[name][rows][left]), f"{name} is changed where it is to be left"
        rules = self.spec.tolerance if isinstance(self.spec.tolerance, tuple) else (self.spec.tolerance,) * len(oracles)
        for index, (got, plain, oracle) in enumerate(zip(outputs, plains, oracles, strict=True)):
            assert got.dtype == plain.dtype, f"output {index} is {got.dtype}, the reference's {plain.dtype}"
            assert oracle.isfinite().all(), f"the oracle of output {index} is not finite"
            if self.spec.judge is not None:
                verdict = self.spec.judge(got, plain, **inputs)
            else:
                verdict = judge(got, plain[rows], oracle[rows], rules[index])
            self.verdicts.append(verdict)
            assert verdict.ok, f"output {index} errs by {verdict.error:.3g}, allowed {verdict.allowed:.3g}"


def _filled(tensor: Tensor, mask: Tensor, value: float) -> Tensor:
    """`masked_fill`, also of numbers of eight bits, which PyTorch only converts and copies everywhere."""
    return _wide(tensor).masked_fill(mask, value).to(tensor.dtype)


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(_wide(a), _wide(b))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _floats(inputs: Inputs) -> dict[str, Tensor]:
    return {name: v for name, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()}


def _same(first: tuple[Tensor, ...], second: tuple[Tensor, ...], what: str) -> None:
    for index, (a, b) in enumerate(zip(first, second, strict=True)):
        assert _equal(a, b), f"output {index} {what} (by up to {(a.double() - b.double()).abs().max():.3g})"


def parity(subject: Subject) -> None:
    """The outputs are right, finite, contiguous, and alias neither input nor each other."""
    inputs = subject.inputs()
    outputs = subject.run(inputs)
    subject.judge(subject.specified(outputs, inputs), subject.inputs())
    taken = {v.untyped_storage().data_ptr() for v in inputs.values() if isinstance(v, Tensor)}
    for index, output in enumerate(outputs):
        assert output.is_contiguous(), f"output {index} is not contiguous"
        storage = output.untyped_storage().data_ptr()
        shared = storage in taken and output.numel() > 0
        assert not shared, f"output {index} shares memory with an input or another output"
        taken.add(storage)


def layouts(subject: Subject) -> None:
    """Any strides and offsets will do; neighbouring arguments differ in theirs, lest one be read by another's."""
    inputs = subject.inputs()
    tensors = [name for name, v in inputs.items() if isinstance(v, Tensor)]
    views = (guard.strided, guard.transposed, Tensor.contiguous)
    for first in range(len(views)):
        chosen = {name: views[(first + index) % len(views)] for index, name in enumerate(tensors)}
        try:
            outputs = subject.run({**inputs, **{name: view(inputs[name]) for name, view in chosen.items()}})
            subject.judge(subject.specified(outputs, inputs), inputs)
        except AssertionError as error:
            used = ", ".join(f"{view.__name__} {name}" for name, view in chosen.items())
            raise AssertionError(f"{used}: {error}") from None


def bounds(subject: Subject) -> None:
    """Nothing is written beyond the allocations, all of the output is written, nothing read beyond the inputs."""
    inputs = subject.inputs()
    banded = {n: guard.Banded.copy(v) for n, v in inputs.items() if isinstance(v, Tensor) and v.numel()}
    implementation = next(i for i in OPS[subject.spec.name].implementations if i.name == subject.backend)
    module = implementation.load()
    allocations = guard.Allocations()

    def launch(*args: Any, launch: Callable[..., Any] = module.launch) -> Any:
        with allocations:
            return launch(*args)

    with mock.patch.object(module, "launch", launch):
        outputs = subject.run({**inputs, **{name: b.tensor for name, b in banded.items()}})
    if not OPS[subject.spec.name].mutates:
        assert allocations.made, "the launcher allocated nothing: its outputs are not guarded"
    for name, b in banded.items():
        assert b.intact(), f"something was written around {name}"
    for index, b in enumerate(allocations.made):
        assert b.intact(), f"something was written around allocation {index}, {tuple(b.tensor.shape)}"
    wrong = "depends on what lies around the inputs, or is not all written"
    _same(subject.specified(outputs, inputs), subject.clean, wrong)


def padding(subject: Subject) -> None:
    """What lies behind a row's length changes no bit of what is specified, be it NaN."""
    inputs = subject.inputs()
    masks = subject.padding(inputs)
    poisoned = {name: _filled(v, masks[name], float("nan")) for name, v in _floats(inputs).items() if name in masks}
    outputs = subject.specified(subject.run({**inputs, **poisoned}), inputs)
    _same(outputs, subject.clean, "depends on the padding")


def rows(subject: Subject) -> None:
    """A row alone is right, and in its batch it is bit for bit the same whatever its neighbours hold, be it NaN."""
    inputs = subject.inputs()
    batched = subject.spec.by_row(inputs)
    for row in range(len(next(iter(batched.values())))):
        mine = {**inputs, **{name: v[row : row + 1] for name, v in batched.items()}}
        alone = subject.specified(subject.run(mine), mine)
        if not all(_equal(a, o[row : row + 1]) for a, o in zip(alone, subject.clean, strict=True)):
            subject.judge(alone, inputs, slice(row, row + 1))
        loud = {name: torch.full_like(v, float("nan")) for name, v in _floats(batched).items()}
        for name, v in loud.items():
            v[row] = inputs[name][row]
        beside = subject.specified(subject.run({**inputs, **loud}), inputs)
        _same(tuple(o[row] for o in beside), tuple(o[row] for o in subject.clean), f"row {row} depends on another row")


def operands(subject: Subject) -> None:
    """Every tensor and every float argument changes the result, and the changed result is right."""
    inputs = subject.inputs()
    generator = torch.Generator().manual_seed(1)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            # Elementwise and positive: a common factor or offset may rightly cancel, a sign may not be allowed.
            factor = 0.5 + torch.rand(value.shape, generator=generator, dtype=torch.float64)
            changed = {**inputs, name: (_wide(value) * factor.to(_wide(value))).to(value.dtype)}
        elif isinstance(value, Tensor):
            changed = {**inputs, name: (value - 1).clamp(min=0)}
        elif isinstance(value, float):
            changed = {**inputs, name: 2 * value + 1000}
        else:
            continue
        after = subject.specified(subject.run(changed), changed)
        assert any(not _equal(a, b) for a, b in zip(subject.clean, after, strict=True)), f"{name} has no effect"
        if isinstance(value, Tensor):
            subject.judge(after, changed)


def repeats(subject: Subject) -> None:
    """Calls on the same inputs give the same bits, and leave the inputs as they are."""
    inputs = subject.inputs()
    for _ in range(5 if subject.device == "cuda" else 1):
        _same(subject.specified(subject.run(inputs), inputs), subject.clean, "differs from one call to the next")
    for name, v in subject.inputs().items():
        assert not isinstance(v, Tensor) or _equal(inputs[name], v), f"{name} was changed"


def graph(subject: Subject) -> None:
    """A CUDA graph captures the call, and its replay with other inputs in the same memory gives their result."""
    inputs = subject.inputs()
    subject.run(inputs)
    torch.cuda.synchronize()
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured), dispatch.use_backend(subject.backend):
        outputs = subject.spec.run(inputs)
    for v in _floats(inputs).values():
        v.copy_(_wide(v) * 0.5)
    plain = subject.run(inputs)
    captured.replay()
    torch.cuda.synchronize()
    outputs, plain = (subject.specified(o, inputs) for o in (outputs, plain))
    _same(outputs, plain, "of the replayed graph differs from a plain call's")


CHECKS: dict[str, Callable[[Subject], None]] = {
    check.__name__: check
    for check in (
        *(parity, layouts, bounds, padding, rows, operands, repeats, graph),
        *(gradients.gradients, gradients.gradient_layouts, gradients.gradient_bounds),
    )
}


def plan(spec: OpSpec, backend: str, device: str = "cpu", seed: int = 0) -> Iterator[tuple[str, Subject]]:
    """The checks that an op is put to, if it has that backend: parity in each dtype, and the gradients of its first
    case where their kernel is fused; the others in its first.

    The cases of released models take a GPU. On the CPU the reference is its own measure, and allocates as it likes.
    """
    named = [i for i in OPS[spec.name].implementations if i.name == backend]
    served = backend == "reference" or any(i.on_cuda or device == "cpu" for i in named)
    for case in spec.cases if served else ():
        if case.kind == "model" and device == "cpu":
            continue
        for dtype in spec.dtypes:
            subject = Subject(spec, case, dtype, backend, device, seed)
            yield "parity", subject
            if (case is spec.cases[0] or dtype == spec.dtypes[0]) and gradients.fused(subject) is not None:
                yield "gradients", subject
            if dtype == spec.dtypes[0]:
                yield from ((check, subject) for check in _applicable(subject))


def _applicable(subject: Subject) -> list[str]:
    inputs = dataclasses.replace(subject, device="cpu").inputs()
    checks = ["layouts", "repeats"]
    if subject.backend != "reference":
        checks.append("bounds")
    if any(mask.any() for name, mask in subject.spec.padding(**inputs).items() if not name.startswith("output")):
        checks.append("padding")
    if any(len(v) > 1 for v in subject.spec.by_row(inputs).values()):
        checks.append("rows")
    if subject.case.kind == "ordinary":
        checks.append("operands")
    if subject.device == "cuda":
        checks.append("graph")
    if subject.case is next((c for c in subject.spec.cases if c.kind == "odd"), None) and gradients.fused(subject):
        checks += ["gradient_layouts", "gradient_bounds"]
    return checks


def _nearest(subject: Subject) -> dict[str, float | None]:
    """The error that came nearest to what was allowed; None where nothing was judged."""
    if not subject.verdicts:
        return {"error": None, "allowed": None}
    worst = max(subject.verdicts, key=lambda v: v.used)
    return {"error": worst.error, "allowed": worst.allowed}


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit status 1 where a check failed."""
    parser = argparse.ArgumentParser(prog="python -m fastspeech.kernels.verify", description="Check kernels.")
    parser.add_argument("--backend", choices=("reference", "triton", "cuda"), default="triton")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--op", help="one op; all where not given")
    parser.add_argument("--check", nargs="+", choices=CHECKS, help="these checks; all that apply where not given")
    parser.add_argument("--kind", choices=get_args(Kind), help="the cases of one kind; all where not given")
    parser.add_argument("--case", help="one case by name; all where not given")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; all that the op claims where not given")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs (default: %(default)s)")
    parser.add_argument("--shrink", action="store_true", help="print what repeats a check's first failure, made small")
    parser.add_argument("--json", action="store_true", help="one JSON record a line")
    options = parser.parse_args(arguments)
    if dispatch.interpreting():
        from fastspeech.kernels import interpreter

        interpreter.correct()
    failed = False
    shrunk: set[str] = set()
    for spec in all_specs() if options.op is None else [load_spec(options.op)]:
        for check, subject in plan(spec, options.backend, options.device, options.seed):
            where = {"op": spec.name, "check": check, "case": subject.case.name, "dtype": subject.dtype_name}
            if check not in (options.check or CHECKS) or options.kind not in (None, subject.case.kind):
                continue
            if any(getattr(options, key) not in (None, where[key]) for key in ("op", "case", "dtype")):
                continue
            began, fault, repeat = time.perf_counter(), "", ""
            subject.verdicts.clear()
            try:
                CHECKS[check](subject)
            except Exception as error:
                failed, fault = True, f"{type(error).__name__}: {error}"
                if not isinstance(error, AssertionError):
                    fault += "\n" + traceback.format_exc()
                elif options.shrink and check not in shrunk:
                    shrunk.add(check)
                    from fastspeech.kernels.shrink import script, shrink

                    repeat = script(check, shrink(CHECKS[check], subject))
            seconds = round(time.perf_counter() - began, 3)
            if options.json:
                record = {**where, **_nearest(subject), "seconds": seconds, "fault": fault, "script": repeat}
                print(json.dumps(record), flush=True)
            else:
                verdict = "FAIL" if fault else "ok"
                print(f"{verdict:4} {seconds:7.2f}s", *where.values(), fault, repeat, sep="  ", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
