"""The references on the CPU: what they promise beyond being right by definition."""

import pytest

from fastspeech.kernels.spec import all_specs
from fastspeech.kernels.verify import CHECKS, plan

PLANNED = [
    pytest.param(check, subject, id=f"{check}-{subject}")
    for spec in all_specs()
    for check, subject in plan(spec, "reference")
]


@pytest.mark.parametrize(("check", "subject"), PLANNED)
def test_reference_holds(check, subject):
    CHECKS[check](subject)
