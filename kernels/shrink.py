"""Of a check that fails, a smaller case that fails too, and a script that shows it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fastspeech.kernels.spec import Case
from fastspeech.kernels.verify import Subject

BUDGET_S = 5.0


def shrink(check: Callable[[Subject], None], subject: Subject, budget_s: float = BUDGET_S) -> Subject:
    """The smallest failing variant of a failing subject that steps downwards find within the budget."""
    deadline = time.perf_counter() + budget_s
    found = True
    while found:
        found = False
        for shape in _smaller(subject.case.shape):
            if time.perf_counter() > deadline:
                return subject
            candidate = dataclasses.replace(subject, case=Case("shrunk", "odd", shape), verdicts=[])
            if _fails(check, candidate):
                subject, found = candidate, True
                break
    return subject


def script(check: str, subject: Subject) -> str:
    """Python that repeats the check on the subject."""
    interpreted = subject.backend == "triton" and subject.device == "cpu"
    arguments = f"torch.{subject.dtype_name}, {subject.backend!r}, {subject.device!r}, seed={subject.seed}"
    lines = [
        *(['import os\n\nos.environ["TRITON_INTERPRET"] = "1"\n'] if interpreted else []),
        "import torch\n",
        "from fastspeech.kernels import interpreter" if interpreted else "",
        "from fastspeech.kernels.spec import Case, load_spec",
        "from fastspeech.kernels.verify import CHECKS, Subject\n",
        "interpreter.correct()" if interpreted else "",
        f"case = Case({subject.case.name!r}, {subject.case.kind!r}, {dict(subject.case.shape)!r})",
        f"CHECKS[{check!r}](Subject(load_spec({subject.spec.name!r}), case, {arguments}))",
    ]
    return "\n".join(line for line in lines if line) + "\n"


def _fails(check: Callable[[Subject], None], subject: Subject) -> bool:
    """Whether the case is one the reference can compute, and the check finds a fault in it."""
    try:
        subject.run(subject.inputs(), "reference")
    except Exception:
        return False
    try:
        check(subject)
    except AssertionError:
        return True
    except Exception:
        return False
    return False


def _smaller(shape: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Cases with one size smaller, the boldest steps first; sizes given for each row follow."""
    for step in (_half, _less):
        for key, value in shape.items():
            if type(value) is int and step(value) < value:
                small = step(value)
                if key == "batch":
                    yield {**shape, **{k: v[:small] for k, v in shape.items() if _by_row(v, value)}, key: small}
                else:
                    clamped = {k: tuple(min(n, small) for n in v) for k, v in shape.items() if _by_row(v)}
                    yield {**shape, key: small}
                    yield {**shape, **clamped, key: small}
            elif _by_row(value):
                for at, size in enumerate(value):
                    if step(size) < size:
                        yield {**shape, key: (*value[:at], step(size), *value[at + 1 :])}


def _half(size: int) -> int:
    return max(size // 2, min(size, 1))


def _less(size: int) -> int:
    return max(size - 1, min(size, 1))


def _by_row(value: Any, rows: int | None = None) -> bool:
    return isinstance(value, tuple) and all(type(n) is int for n in value) and rows in (None, len(value))
