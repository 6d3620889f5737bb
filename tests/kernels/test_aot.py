"""Every launch compiled to machine code for three GPUs, without one; and no compilation for a new length."""

import random

import kernel_seeds_triton as seeds
import pytest
import torch

from fastspeech.kernels import OPS
from fastspeech.kernels.aot import SHARED_LIMIT, Binary, cases_to_compile, compile_case, compile_keys, in_turn
from fastspeech.kernels.spec import all_specs

SPECS = {s.name: s for s in all_specs() if any(i.name == "triton" for i in OPS[s.name].implementations)}
PLANNED = [
    pytest.param(
        *(spec.name, case.name, dtype, target),
        marks=pytest.mark.background("aot", spec.name),
        id=f"{spec.name}-{case.name}-{dtype}-{target}".replace(" ", "_"),
    )
    for spec in SPECS.values()
    for case in cases_to_compile(spec)
    for dtype in (str(dtype).removeprefix("torch.") for dtype in spec.dtypes)
    for target in SHARED_LIMIT
]


@pytest.mark.parametrize(("op", "case", "dtype", "target"), PLANNED)
def test_launches_compile_within_the_limits(op, case, dtype, target, background):
    records = background("aot", op)
    mine = [r for r in records if (r["case"], r["dtype"], r["target"]) == (case, dtype, target)]
    assert mine, "nothing was launched"
    for record in mine:
        assert record["registers"] > 0
        assert not record["faults"], f"{record['kernel']} {record['config']}: {'; '.join(record['faults'])}"


FUSED = [spec for spec in SPECS.values() if any(i.backward is not None for i in OPS[spec.name].implementations)]


@pytest.mark.parametrize("spec", FUSED, ids=lambda spec: spec.name)
def test_in_turn_every_dtype_of_a_backward_is_compiled_for_every_target(spec):
    cases = range(len(cases_to_compile(spec)))
    turns = {(in_turn(spec, case, target), target) for case in cases for target in SHARED_LIMIT}
    assert turns == {(dtype, target) for dtype in spec.dtypes for target in SHARED_LIMIT}


def keys_of_calls(spec, case, dtype):
    """Kernels needed by the case, and by calls that differ from it as Triton may notice (by 1, by 16) or at random."""
    draw = random.Random(0)
    others = [(0, 1), (1, 16), *((draw.randint(0, 20), draw.randint(-20, 500)) for _ in range(40))]
    first, *rest = compile_keys(spec, [case.shape, *(spec.vary(case.shape, *by) for by in others)], dtype)
    return first, set().union(*rest)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_new_length_or_batch_compiles_nothing_new(spec):
    for case in spec.cases:
        if case.kind == "model":
            first, others = keys_of_calls(spec, case, spec.dtypes[-1])
            assert first
            assert others <= first


def test_a_length_that_is_constant_in_the_kernel_is_found(monkeypatch):
    case = seeds.SPEC.cases[0]
    first, others = keys_of_calls(seeds.SPEC, case, torch.bfloat16)
    assert others == first
    assert len(first) == 1
    monkeypatch.setattr(seeds, "launch", seeds.length_is_constant)
    first, others = keys_of_calls(seeds.SPEC, case, torch.bfloat16)
    assert len(others - first) > 10


def compile_seed(monkeypatch, launch, target="sm_90", dtype=torch.bfloat16):
    monkeypatch.setattr(seeds, "launch", launch)
    return compile_case(seeds.SPEC, seeds.SPEC.cases[0], dtype, target)


@pytest.mark.parametrize("target", SHARED_LIMIT)
def test_a_right_kernel_has_no_faults(monkeypatch, target):
    (binary,) = compile_seed(monkeypatch, seeds.right, target)
    assert binary.kernel == "_double"
    assert binary.config == "columns=48 BLOCK=64 num_warps=1"
    assert binary.grid == (10,)
    assert 8 <= binary.registers <= 255
    assert (binary.stack, binary.spills, binary.faults()) == (0, 0, [])


def test_spills_are_found_and_need_a_reason(monkeypatch):
    (binary,) = compile_seed(monkeypatch, seeds.too_few_registers, dtype=torch.float32)
    assert binary.registers <= 24
    assert binary.stack > 0
    assert binary.spills > 0
    assert "without a reason" in binary.faults()[0]
    assert not binary.faults("a sort of 16 values a thread")


def test_a_grid_beyond_the_chip_is_found(monkeypatch):
    (binary,) = compile_seed(monkeypatch, seeds.grid_too_high)
    assert "grid (1, 70000)" in binary.faults()[0]


def test_shared_and_tensor_memory_beyond_the_chip_are_found():
    binary = Binary("k", "", (1,), "sm_80", 32, 0, 0, 164 * 1024, 600)
    assert [fault.split()[2] for fault in binary.faults()] == ["of", "of"]
    assert not Binary("k", "", (1,), "sm_90", 32, 0, 0, 164 * 1024, 0).faults()


def test_outputs_unlike_the_fake_are_found(monkeypatch):
    with pytest.raises(AssertionError, match="dtype"):
        compile_seed(monkeypatch, seeds.wrong_dtype)


def test_a_launch_that_depends_on_values_is_found(monkeypatch):
    with pytest.raises(RuntimeError):  # of one kind or another, as torch was built with CUDA or without
        compile_seed(monkeypatch, seeds.reads_values)
