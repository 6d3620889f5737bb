"""Ops, each implementation held to the float64 oracle by the checks of `fastspeech.kernels.verify`.

They run in a process of their own: a kernel that crashes, or leaves a CUDA context that no longer works, costs its own
results and no others, and Triton's interpreter, which is chosen when Triton is loaded, can stand beside its compiler.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from fastspeech.kernels.dispatch import device_refusal
from fastspeech.kernels.op import OPS
from fastspeech.kernels.spec import all_specs
from fastspeech.kernels.tolerance import Verdict
from fastspeech.parity.result import Fault, Result


def units(device: str, backend: str | None, names: list[str]) -> Iterator[tuple[str, str, str | None]]:
    """(op, implementation, why it cannot run here) of what there is to check.

    On a CPU that is the reference and, in Triton's interpreter, the Triton kernels.
    """
    for spec in all_specs():
        if names and spec.name not in names:
            continue
        implementations = [i.name for i in OPS[spec.name].implementations]
        for name in ["reference", *implementations] if device == "cpu" else implementations:
            if backend in (None, name):
                yield spec.name, name, _refusal(name, device)


def _refusal(backend: str, device: str) -> str | None:
    if backend == "triton" and device == "cpu":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    return device_refusal(backend, torch.device(device))


def check(op: str, backend: str, device: str, seed: int) -> list[Result]:
    """One result for each dtype the op claims."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "fastspeech.kernels.verify", "--op", op, "--backend", backend, "--device", device]
    interpret = str(int(backend == "triton" and device == "cpu"))
    done = subprocess.run(
        [*command, "--seed", str(seed), "--shrink", "--json"],
        env={**os.environ, "TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    records = [json.loads(line) for line in done.stdout.splitlines()]
    results = [_result(op, backend, dtype, records) for dtype in dict.fromkeys(r["dtype"] for r in records)]
    if done.returncode not in (0, 1) or not records:
        last = " ".join(str(records[-1][key]) for key in ("check", "case", "dtype")) if records else "no check"
        message = f"the process ended with status {done.returncode} after {last}\n{done.stderr[-2000:]}"
        fault = Fault("process", message, " ".join(command) + "\n")
        results.append(Result(op, backend, "", 1, 0.0, 0.0, (fault,), time.perf_counter() - began))
    return results


def _result(op: str, backend: str, dtype: str, records: list[dict[str, Any]]) -> Result:
    mine = [r for r in records if r["dtype"] == dtype]
    judged = [Verdict(r["error"], r["allowed"]) for r in mine if r["error"] is not None]
    nearest = max(judged, key=lambda verdict: verdict.used, default=Verdict(0.0, 0.0))
    faults = tuple(Fault(f"{r['check']}, {r['case']}", r["fault"], r["script"]) for r in mine if r["fault"])
    seconds = sum(r["seconds"] for r in mine)
    return Result(op, backend, dtype, len(mine), nearest.error, nearest.allowed, faults, seconds)
