"""The checks themselves: each passes a right kernel, and finds the bugs it is there for."""

import kernel_seeds
import pytest
import torch

from fastspeech.kernels.verify import CHECKS, Subject, plan


def subject():
    return Subject(kernel_seeds.SPEC, kernel_seeds.SPEC.cases[0], torch.float32, "cuda")


def test_a_right_kernel_passes_every_check():
    checks = [check for check, subject in plan(kernel_seeds.SPEC, "cuda") if subject.dtype == torch.float32]
    assert set(checks) == set(CHECKS) - {"graph"}
    for check in checks:
        CHECKS[check](subject())


@pytest.mark.parametrize("bug", kernel_seeds.BUGS, ids=lambda bug: bug.__name__)
def test_a_bug_is_found(bug, monkeypatch):
    check, message = kernel_seeds.BUGS[bug]
    monkeypatch.setattr(kernel_seeds, "launch", bug)
    with pytest.raises(AssertionError, match=message):
        CHECKS[check](subject())
