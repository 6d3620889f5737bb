"""The rule by which every kernel is judged."""

import pytest
import torch

from fastspeech.kernels.tolerance import EXACT, Tolerance, judge

ORACLE = torch.tensor([1.0, -4.0, 0.5], dtype=torch.float64)
EPS = torch.finfo(torch.float32).eps


def verdict(error, own=0.0, oracle=ORACLE, **options):
    result, plain = ((oracle + torch.tensor([e, 0, 0], dtype=torch.float64)).float() for e in (error, own))
    return judge(result, plain, oracle, **options)


def test_twice_the_references_own_error_and_two_ulps_at_the_outputs_scale_are_allowed():
    assert verdict(2 * 2**-10, own=2**-10).ok
    assert not verdict(2 * 2**-10 + 10 * EPS, own=2**-10).ok
    assert verdict(8 * EPS).ok
    assert not verdict(9 * EPS).ok


def test_an_exact_op_may_not_err_at_all():
    assert verdict(0.0, tolerance=EXACT).ok
    assert not verdict(EPS, own=1.0, tolerance=EXACT).ok


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_where_the_oracle_is_fails(value):
    assert not judge(torch.tensor([value, -4.0, 0.5]), ORACLE.float(), ORACLE).ok
    infinite = torch.tensor([float("-inf"), -4.0, 0.5], dtype=torch.float64)
    assert judge(torch.tensor([value, -4.0, 0.5]), infinite.float(), infinite).ok


def test_another_shape_fails():
    with pytest.raises(AssertionError, match="shape"):
        judge(ORACLE[:2].float(), ORACLE.float(), ORACLE)


def test_another_tolerance_needs_its_reason():
    with pytest.raises(ValueError, match="reason"):
        Tolerance(factor=4.0)
