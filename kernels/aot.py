"""Ahead-of-time compilation of every Triton launch of an op, on a machine without a GPU.

The op's launcher runs on fake CUDA tensors, and Triton, whose driver is stood in for, specialises each launch as it
would at run time and compiles it to machine code for the target, from which the resources it needs are read.

    python -m fastspeech.kernels.aot [--op NAME] [--case NAME] [--dtype NAME] [--target sm_90] [--every] [--json]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor
from torch._subclasses import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from fastspeech.kernels.dispatch import interpreting
from fastspeech.kernels.op import OPS, Op
from fastspeech.kernels.spec import Case, OpSpec, all_specs, load_spec

SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
"""Targets, and the most shared memory a block may have on each (CUDA C++ Programming Guide, "Compute Capabilities")."""

TENSOR_MEMORY_COLUMNS = 512
GRID_LIMIT = (2**31 - 1, 65535, 65535)

_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Binary:
    """What one launch needs, read from its machine code: registers a thread, bytes of stack, instructions that spill
    or reload (accesses to local memory), and bytes of shared memory a block."""

    kernel: str
    config: str
    grid: tuple[int, ...]
    target: str
    registers: int
    spills: int
    stack: int
    shared: int
    tensor_memory: int

    def faults(self, stack_reason: str | None = None) -> list[str]:
        """Why the launch would fail, or be slower than its spec admits, on its target."""
        found = []
        if self.shared > SHARED_LIMIT[self.target]:
            found.append(f"{self.shared} bytes of shared memory, at most {SHARED_LIMIT[self.target]}")
        if self.tensor_memory > TENSOR_MEMORY_COLUMNS:
            found.append(f"{self.tensor_memory} columns of tensor memory, at most {TENSOR_MEMORY_COLUMNS}")
        if any(size > most for size, most in zip(self.grid, GRID_LIMIT, strict=False)):
            found.append(f"grid {self.grid}, at most {GRID_LIMIT}")
        if (self.stack or self.spills) and not stack_reason:
            found.append(f"{self.stack} bytes of stack and {self.spills} accesses to it without a reason in the spec")
        return found


class _Driver:
    """Stands in for Triton's CUDA driver. The device index is the target, so that each keeps its own cache."""

    def __init__(self, index: int, capability: int) -> None:
        self._index = index
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._index

    def get_current_stream(self, device: int) -> int:
        return 0


class _Pointer:
    """What Triton looks at in a tensor argument: its dtype and how its address is aligned."""

    def __init__(self, tensor: Tensor) -> None:
        self.dtype = tensor.dtype
        # The allocator aligns storages to far more than the 16 bytes that Triton asks about.
        self._address = 4096 + int(tensor.storage_offset()) * tensor.element_size()

    def data_ptr(self) -> int:
        return self._address


@contextmanager
def _intercepted(index: int, capability: int, seen: Callable[..., None]) -> Iterator[None]:
    """Within the block a Triton launch compiles its kernel, for the capability, and reports to `seen` instead."""
    run = JITFunction.run

    def compile_only(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        stand_ins = [_Pointer(a) if isinstance(a, Tensor) else a for a in args]
        named = {name: _Pointer(a) if isinstance(a, Tensor) else a for name, a in kwargs.items()}
        compiled = run(kernel, *stand_ins, grid=grid, warmup=True, **named)
        seen(kernel, kernel.signature.bind_partial(*args), kwargs, grid, compiled)

    before = driver._active
    driver.set_active(_Driver(index, capability))
    try:
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(JITFunction, "run", compile_only))
            # A build of torch without CUDA has fake CUDA tensors, but no devices to select or ask.
            stack.enter_context(mock.patch.object(torch.cuda, "device", lambda device: nullcontext()))
            ability = divmod(capability, 10)
            stack.enter_context(mock.patch.object(torch.cuda, "get_device_capability", lambda *device: ability))
            yield
    finally:
        driver._active = before


def positional(spec: OpSpec, inputs: Mapping[str, Any]) -> tuple[Op, tuple[Any, ...]]:
    """The op that a call of `spec.call` reaches, and the arguments it gets, checks done and defaults filled in."""
    with mock.patch.object(Op, "__call__", lambda op, *args: args):
        return OPS[spec.name], spec.call(**inputs)


def fake_cuda(value: Any) -> Any:
    """A tensor's twin on a GPU that need not exist, to be called in `FakeTensorMode`; anything else as it is."""
    if not isinstance(value, Tensor):
        return value
    span = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
    storage = torch.empty(value.storage_offset() + span, dtype=value.dtype, device="cuda")
    return storage.as_strided(value.shape, value.stride(), value.storage_offset())


def _launch(spec: OpSpec, shape: Mapping[str, Any], dtype: torch.dtype, backward: bool = True) -> None:
    """Run the Triton launchers of an op, forward and backward, on fake CUDA tensors, and hold their results to what the
    op's fakes promise."""
    # A record may bring real tensors (a window, a filter bank) into the inputs.
    with FakeTensorMode(allow_non_fake_inputs=True):
        inputs = spec.inputs(dtype, torch.Generator(), **shape)
        op, args = positional(spec, {name: fake_cuda(value) for name, value in inputs.items()})
        for implementation in op.implementations:
            if implementation.name == "triton":
                refusal = implementation.limits(*args)
                if refusal is not None:
                    raise AssertionError(f"{spec.name} claims {dtype} and {dict(shape)} but: {refusal}")
                promised = op.overload(*args)
                _agree(implementation.load().launch(*args), promised)
                fused = implementation.backward is not None and implementation.backward_limits(*args) is None
                if backward and fused:
                    outputs = [promised] if isinstance(promised, Tensor) else list(promised)
                    needs = [isinstance(a, Tensor) and a.is_floating_point() for a in args]
                    found = implementation.pull_back([*outputs], outputs, args, needs)
                    _agree(found, op.backward_overload(outputs, outputs, *args, needs))


def _agree(result: Any, promised: Any) -> None:
    if promised is None and result is None:
        return
    pairs = zip([result], [promised], strict=True) if isinstance(result, Tensor) else zip(result, promised, strict=True)
    for got, fake in pairs:
        for fact in ("shape", "dtype", "device"):
            if getattr(got, fact) != getattr(fake, fact):
                raise AssertionError(f"launch gives {fact} {getattr(got, fact)}, the fake {getattr(fake, fact)}")
        if not (got.is_contiguous() and fake.is_contiguous()):
            raise AssertionError("an output is not contiguous")


def compile_case(spec: OpSpec, case: Case, dtype: torch.dtype, target: str, backward: bool = True) -> list[Binary]:
    """Compile every launch of a call of the op with the case's shapes, and of its backward, for `target` ("sm_90")."""
    found: list[Binary] = []

    def seen(kernel: JITFunction, bound: Any, kwargs: dict[str, Any], grid: Any, compiled: Any) -> None:
        given = {**bound.arguments, **kwargs}
        sizes = grid(given) if callable(grid) else grid
        constants = [f"{p.name}={given[p.name]}" for p in kernel.params if p.is_constexpr and p.name in given]
        options = [f"{name}={kwargs[name]}" for name in ("num_warps", "num_stages") if name in kwargs]
        found.append(_read(compiled, kernel.__name__, " ".join(constants + options), tuple(sizes), target))

    capability = int(target.removeprefix("sm_"))
    with _intercepted(capability, capability, seen):
        _launch(spec, case.shape, dtype, backward)
    return found


def _read(compiled: Any, kernel: str, config: str, grid: tuple[int, ...], target: str) -> Binary:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _cuobjdump("-res-usage", file.name)
        counts = dict(re.findall(r"\b(REG|STACK|SHARED):(\d+)", usage))
        registers, stack, static = (int(counts[key]) for key in ("REG", "STACK", "SHARED"))
        # Spilled registers live on the stack: without one there is nothing to disassemble for.
        spills = len(re.findall(r"\b(?:STL|LDL)\b", _cuobjdump("-sass", file.name))) if stack else 0
    return Binary(
        kernel=kernel,
        config=config,
        grid=grid,
        target=target,
        registers=registers,
        spills=spills,
        stack=stack,
        shared=max(static, compiled.metadata.shared),
        tensor_memory=getattr(compiled.metadata, "tmem_size", None) or 0,
    )


def _cuobjdump(option: str, path: str) -> str:
    return subprocess.run([_CUOBJDUMP, option, path], check=True, capture_output=True, text=True).stdout


def compile_keys(spec: OpSpec, shapes: list[Mapping[str, Any]], dtype: torch.dtype) -> list[set[str]]:
    """For each of the shapes, the kernels that a call needs compiled, as Triton tells them apart (nothing is)."""
    keys: list[set[str]] = []

    def note(*, key: Any, fn: Any, **rest: Any) -> bool:
        keys[-1].add(f"{fn.name} {key}")
        return True

    # A device of its own, since a kernel that has been compiled is not reported any more.
    with mock.patch.object(triton.knobs.runtime, "jit_cache_hook", note), _intercepted(-1, 90, lambda *launch: None):
        for shape in shapes:
            keys.append(set())
            _launch(spec, shape, dtype)
    return keys


def cases_to_compile(spec: OpSpec) -> list[Case]:
    """The cases whose launches stand for all: those of released models, and one whose sizes divide nothing."""
    odd = [case for case in spec.cases if case.kind == "odd"]
    return [case for case in spec.cases if case.kind == "model"] + odd[:1]


def in_turn(spec: OpSpec, case: int, target: str) -> torch.dtype:
    """The dtype in which the backward of the case of that number is compiled for a target, where it is not in all.

    It takes longer than the forward, and what goes wrong with it seldom does so in one dtype and target alone.
    """
    return spec.dtypes[(case + list(SHARED_LIMIT).index(target)) % len(spec.dtypes)]


def _selected(options: argparse.Namespace) -> Iterator[tuple[OpSpec, Case, str, Binary]]:
    for spec in all_specs() if options.op is None else [load_spec(options.op)]:
        cases = [case for case in spec.cases if case.name == options.case] if options.case else cases_to_compile(spec)
        for (number, case), dtype in product(enumerate(cases), spec.dtypes):
            name = str(dtype).removeprefix("torch.")
            if options.dtype in (None, name):
                for target in SHARED_LIMIT if options.target is None else (options.target,):
                    backward = options.every or dtype == in_turn(spec, number, target)
                    for binary in compile_case(spec, case, dtype, target, backward):
                        yield spec, case, name, binary


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit status 1 where a launch has a fault."""
    parser = argparse.ArgumentParser(prog="python -m fastspeech.kernels.aot", description="Compile without a GPU.")
    parser.add_argument("--op", help="one op; all where not given")
    parser.add_argument("--case", help="one case by name; the model cases and the first odd one where not given")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; all that the op claims where not given")
    parser.add_argument("--target", choices=SHARED_LIMIT, help="one target; all where not given")
    parser.add_argument("--every", action="store_true", help="backwards in every dtype; in one, in turn, if not given")
    parser.add_argument("--json", action="store_true", help="a JSON record a line: op, case, dtype, numbers, faults")
    options = parser.parse_args(arguments)
    if interpreting():
        parser.error("TRITON_INTERPRET=1 compiles nothing")
    line = "{:28} {:24} {:9} {:7} {:>5} {:>7} {:>6} {:>7} {:>7}  {}"
    if not options.json:
        print(line.format("kernel", "case", "dtype", "target", "regs", "spills", "stack", "shared", "limit", "config"))
    failed = False
    for spec, case, dtype, binary in _selected(options):
        faults = binary.faults(spec.stack.get(binary.target))
        failed |= bool(faults)
        if options.json:
            record = {"op": spec.name, "case": case.name, "dtype": dtype, **asdict(binary), "faults": faults}
            print(json.dumps(record), flush=True)
        else:
            b, limit = binary, SHARED_LIMIT[binary.target]
            numbers = (b.registers, b.spills, b.stack, b.shared, limit)
            print(line.format(b.kernel, case.name, dtype, b.target, *numbers, b.config), flush=True)
            for fault in faults:
                print(f"    FAULT: {fault}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
