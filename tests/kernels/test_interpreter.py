"""The Triton kernels in Triton's interpreter, against the float64 oracle and every other demand."""

import pytest

from fastspeech.kernels.spec import all_specs
from fastspeech.kernels.verify import plan

PLANNED = [
    pytest.param(check, subject, marks=pytest.mark.background("verify", spec.name), id=f"{check}-{subject}")
    for spec in all_specs()
    for check, subject in plan(spec, "triton")
]


@pytest.mark.parametrize(("check", "subject"), PLANNED)
def test_kernel_holds(check, subject, background):
    records = background("verify", subject.spec.name)
    mine = [r for r in records if (r["check"], r["case"], r["dtype"]) == (check, subject.case.name, subject.dtype_name)]
    assert len(mine) == 1, "the process ended before this check"
    assert not mine[0]["fault"], mine[0]["fault"]


def test_every_planned_check_is_known_by_its_names():
    keys = [(p.values[0], p.values[1].spec.name, p.values[1].case.name, p.values[1].dtype_name) for p in PLANNED]
    assert len(keys) == len(set(keys))
