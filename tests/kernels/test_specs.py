"""The records themselves: complete, consistent with the ops, and shown in the README as they are."""

from pathlib import Path

import pytest
import torch

from fastspeech.kernels import OPS
from fastspeech.kernels.aot import positional
from fastspeech.kernels.dispatch import BACKENDS
from fastspeech.kernels.spec import all_specs, table

SPECS = {spec.name: spec for spec in all_specs()}
CASES = [(spec, case) for spec in SPECS.values() for case in spec.cases]
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
each_case = pytest.mark.parametrize(("spec", "case"), CASES, ids=[f"{s.name}-{c.name}" for s, c in CASES])


def inputs_of(spec, case, dtype=torch.float32):
    return spec.inputs(dtype, torch.Generator().manual_seed(0), **case.shape)


def test_every_op_has_a_record():
    rooms = {op.reference.__module__.split(".")[2] for op in OPS.values() if "fastspeech" in op.reference.__module__}
    assert rooms == set(SPECS)


@each_spec
def test_record_names_its_op_and_every_kind_of_case(spec):
    assert spec.name in OPS
    assert spec.summary
    assert len(spec.summary) < 100
    assert {case.kind for case in spec.cases} == {"ordinary", "odd", "edge", "model"}
    assert len({case.name for case in spec.cases}) == len(spec.cases)
    assert set(spec.stack) <= {"sm_80", "sm_90", "sm_100"}
    assert {i.name for i in OPS[spec.name].implementations} <= set(BACKENDS) - {"auto", "reference"}


def lengths_of(spec):
    return next((a for a in OPS[spec.name].overload._schema.arguments if a.name == "lengths"), None)


@pytest.mark.parametrize("spec", filter(lengths_of, SPECS.values()), ids=lambda spec: spec.name)
def test_lengths_are_tried_empty_partial_and_absent(spec):
    inputs = [inputs_of(spec, case) for case in spec.cases]
    given = torch.cat([i["lengths"] for i in inputs if i["lengths"] is not None])
    assert (given == 0).any()
    assert any(mask.any() for i in inputs for mask in spec.padding(**i).values())
    if str(lengths_of(spec).type) == "Optional[Tensor]":
        assert any(i["lengths"] is None for i in inputs)


@each_case
def test_case_makes_inputs_and_has_a_cost(spec, case):
    for dtype in (torch.float64, *spec.dtypes) if case.kind != "model" else spec.dtypes[:1]:
        inputs = inputs_of(spec, case, dtype)
        tensors = [v for v in inputs.values() if isinstance(v, torch.Tensor)]
        assert tensors[0].dtype == dtype
        assert all(t.double().isfinite().all() for t in tensors)
        again = inputs_of(spec, case, dtype)
        assert all(torch.equal(v.double(), again[k].double()) for k, v in inputs.items() if isinstance(v, torch.Tensor))
    assert len({len(value) for value in spec.by_row(inputs).values()}) <= 1
    cost = spec.cost(2, **case.shape)
    # An edge may leave nothing to do, and a move is not arithmetic.
    if case.kind != "edge":
        assert cost.bytes > 0
        assert cost.flops > 0 or OPS[spec.name].mutates
        assert spec.cost(4, **case.shape).bytes > cost.bytes


@each_case
def test_kernels_serve_what_the_record_claims(spec, case):
    for dtype in spec.dtypes:
        op, args = positional(spec, inputs_of(spec, case, dtype))
        assert {i.name: i.limits(*args) for i in op.implementations} == {i.name: None for i in op.implementations}


@each_spec
def test_float64_is_refused_with_a_reason(spec):
    op, args = positional(spec, inputs_of(spec, spec.cases[0], torch.float64))
    assert all(i.limits(*args) for i in op.implementations)


def test_the_readme_shows_the_table_of_ops():
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    shown = readme.split("<!-- ops -->")[1].split("<!-- /ops -->")[0]
    assert shown.strip() == table(), "paste the output of fastspeech.kernels.spec.table() between the markers"
