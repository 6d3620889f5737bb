"""How far a kernel may err: the one place that decides.

A result is judged against the reference in float64. It may err at most twice as much as the reference run in the
kernel's own dtype errs, plus a floor of two units in the last place at the output's scale (the rule of
flash-attention's tests, https://github.com/Dao-AILab/flash-attention, with the oracle in float64).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """A tolerance; one that differs from the rule states its reason."""

    factor: float = 2.0
    floor_ulps: float = 2.0
    reason: str = ""

    def __post_init__(self) -> None:
        if (self.factor, self.floor_ulps) != (2.0, 2.0) and not self.reason:
            raise ValueError("a tolerance other than the rule needs its reason")


RULE = Tolerance()
EXACT = Tolerance(0.0, 0.0, "a pure move of data is exact")


@dataclass(frozen=True)
class Verdict:
    """The largest error of a result and the largest allowed, in the output's units."""

    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        return self.error <= self.allowed

    @property
    def used(self) -> float:
        """The share of what is allowed."""
        if self.error == 0:
            return 0.0
        return self.error / self.allowed if self.allowed else float("inf")


def judge(result: Tensor, plain: Tensor, oracle: Tensor, tolerance: Tolerance = RULE) -> Verdict:
    """Compare `result` with the float64 `oracle`, given what the reference in the same dtype (`plain`) makes of it.

    A result that is not finite where the oracle is has infinite error. Of numbers of eight bits it is the error beyond
    that of the nearest such number which counts, and the floor is float32's, in which they are computed.
    """
    if result.shape != oracle.shape:
        raise AssertionError(f"shape {tuple(result.shape)} where the reference gives {tuple(oracle.shape)}")
    finite = oracle.isfinite()
    wanted = oracle[finite]
    if wanted.numel() == 0:
        return Verdict(0.0, 0.0)
    precision, rounding = result.dtype, torch.zeros_like(wanted)
    if result.element_size() == 1:
        wanted = wanted.clamp(torch.finfo(result.dtype).min, torch.finfo(result.dtype).max)
        precision, rounding = torch.float32, (wanted.to(result.dtype).double() - wanted).abs()
    error = (result.double()[finite] - wanted).abs() - rounding
    own = ((plain.double()[finite] - wanted).abs() - rounding).max().item()
    ulp = torch.finfo(precision).eps * wanted.abs().max().item()
    worst = error.max().item() if error.isfinite().all() else float("inf")
    return Verdict(worst, tolerance.factor * own + tolerance.floor_ulps * ulp)
