"""What a parity run finds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A check that failed: its name, what was found, and a script that shows it again ("" where there is none)."""

    check: str
    message: str
    script: str = ""


@dataclass(frozen=True)
class Result:
    """One line of the report.

    Attributes:
        name: the op or the model.
        served_by: the implementation of an op, or "model".
        dtype: what was computed in.
        checks: how many were made.
        error, allowed: of the case nearest to its limit, in the output's units.
        faults: the checks that failed.
        seconds: what it took.
    """

    name: str
    served_by: str
    dtype: str
    checks: int
    error: float
    allowed: float
    faults: tuple[Fault, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.faults
