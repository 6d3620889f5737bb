"""Checks that need a Python of their own, run in the background while the others go on.

Triton's interpreter is chosen when Triton is imported, and ahead-of-time compilation is slow: a test that is marked
`background(module, op)` reads its verdict from the JSON records of `python -m fastspeech.kernels.<module> --op <op>`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

# Set for a session by hand, it would reach the tests that need Triton's compiler.
os.environ.pop("TRITON_INTERPRET", None)

Records = list[dict[str, Any]]
_pool = ThreadPoolExecutor(os.cpu_count())
_running: dict[tuple[str, str], Future[Records]] = {}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "background(module, op): its verdict comes from a process of its own")


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.option.collectonly:
        for item in session.items:
            for mark in item.iter_markers("background"):
                _start(*mark.args)


def _start(module: str, op: str) -> Future[Records]:
    if (module, op) not in _running:
        _running[module, op] = _pool.submit(_run, module, op)
    return _running[module, op]


def _run(module: str, op: str) -> Records:
    environment = {**os.environ, "TRITON_INTERPRET": str(int(module == "verify")), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"fastspeech.kernels.{module}", "--op", op, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1) or not done.stdout:
        pytest.fail(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-4000:]}", pytrace=False)
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="session")
def background() -> Callable[[str, str], Records]:
    """The records of a module and op, when its process has ended."""
    return lambda module, op: _start(module, op).result()


def pytest_sessionfinish() -> None:
    _pool.shutdown(cancel_futures=True)
