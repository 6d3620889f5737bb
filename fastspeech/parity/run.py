"""A run of the parity suite: what to check, and the checks side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

from fastspeech.kernels.op import OPS
from fastspeech.parity import models, ops
from fastspeech.parity.result import Result


@dataclass(frozen=True)
class Unit:
    """What is checked in one go, or why it cannot be."""

    name: str
    check: Callable[[], list[Result]]
    refusal: str | None = None


def units(
    device: str = "cpu",
    backend: str | None = None,
    op_names: Sequence[str] = (),
    model_names: Sequence[str] = (),
    seed: int = 0,
) -> list[Unit]:
    """The units of a run: every op by every implementation and every model, or those that are named.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        backend: one implementation; all where None. Models are then served by `auto`.

    Raises:
        ValueError: an op or a model that there is not.
    """
    for known, names in ((OPS, op_names), (models.EXAMPLES, model_names)):
        unknown = [name for name in names if name not in known]
        if unknown:
            raise ValueError(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
    everything = not op_names and not model_names
    found = []
    if op_names or everything:
        for op, implementation, refusal in ops.units(device, backend, list(op_names)):
            check = partial(ops.check, op, implementation, device, seed)
            found.append(Unit(f"{op} by {implementation}", check, refusal))
    for name in models.EXAMPLES if everything else model_names:
        found.append(Unit(name, partial(_model, name, device, backend or "auto", seed)))
    return found


def _model(name: str, device: str, backend: str, seed: int) -> list[Result]:
    return [models.check(name, device, backend, seed)]


def run(units: Sequence[Unit], workers: int | None = None) -> Iterator[tuple[Unit, list[Result]]]:
    """The results of the units that can run, as they come; `workers` at a time, by default one a CPU core."""
    able = [unit for unit in units if unit.refusal is None]
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        running: dict[Future[list[Result]], Unit] = {pool.submit(unit.check): unit for unit in able}
        try:
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(cancel_futures=True)
