"""The checks themselves: each passes a right kernel, and finds the bugs it is there for."""

import kernel_seeds
import kernel_seeds_backward
import kernel_seeds_writes
import pytest
import torch

from fastspeech.kernels.verify import CHECKS, Subject, plan

SEEDS = (kernel_seeds, kernel_seeds_backward, kernel_seeds_writes)


def subject(seeds):
    return Subject(seeds.SPEC, seeds.SPEC.cases[0], torch.float32, "cuda")


@pytest.mark.parametrize("seeds", SEEDS, ids=lambda seeds: seeds.SPEC.name)
def test_a_right_kernel_passes_every_check(seeds):
    checks = {check for check, subject in plan(seeds.SPEC, "cuda") if subject.dtype == torch.float32}
    without = set() if seeds.SPEC.batched else {"rows"}
    if seeds is not kernel_seeds_backward:
        without |= {check for check in CHECKS if check.startswith("gradient")}
    assert checks == set(CHECKS) - {"graph"} - without
    for check in checks:
        CHECKS[check](subject(seeds))


@pytest.mark.parametrize(
    ("seeds", "bug"), [(seeds, bug) for seeds in SEEDS for bug in seeds.BUGS], ids=lambda part: part.__name__
)
def test_a_bug_is_found(seeds, bug, monkeypatch):
    check, message = seeds.BUGS[bug]
    monkeypatch.setattr(seeds, "launch", bug)
    with pytest.raises(AssertionError, match=message):
        CHECKS[check](subject(seeds))
