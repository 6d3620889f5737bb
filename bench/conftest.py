"""CPU benchmarks against a peer in the same run: `pytest bench`.

pytest-benchmark times our side; the peer runs in the untimed set-up of each round and is timed there, so that the two
alternate and drift of the machine's speed falls on both. The summary prints medians and the median of the paired
ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

ROWS = pytest.StashKey[list[tuple[str, float, float, float, float]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture(autouse=True)
def _inference() -> Any:
    with torch.inference_mode(False), torch.no_grad():
        yield


@pytest.fixture
def against(benchmark: Any, request: pytest.FixtureRequest) -> Callable[..., None]:
    """`against(ours, theirs)`: time both in turn, after one warm-up each, and record the ratio theirs / ours."""

    def run(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int = 9) -> None:
        peer: list[float] = []

        def time_peer() -> None:
            start = time.perf_counter()
            theirs()
            peer.append(time.perf_counter() - start)

        benchmark.pedantic(ours, setup=time_peer, rounds=rounds, warmup_rounds=1)
        own = list(benchmark.stats.stats.data)
        ratios = sorted(b / a for a, b in zip(own, peer[-len(own) :], strict=True))
        row = (request.node.name, statistics.median(own), statistics.median(peer[1:]), statistics.median(ratios))
        quarter = len(ratios) // 4
        spread = ratios[-1 - quarter] - ratios[quarter]
        benchmark.extra_info.update(transformers_median_s=row[2], ratio=row[3], ratio_spread=spread)
        request.config.stash[ROWS].append((*row, spread))

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section(f"against transformers, float32, {torch.get_num_threads()} threads")
    width = max(len(row[0]) for row in rows)
    terminalreporter.write_line(f"{'':{width}}  {'ours ms':>9}  {'theirs ms':>9}  {'ratio':>6}  quartile range")
    for name, own, peer, ratio, spread in rows:
        terminalreporter.write_line(
            f"{name:{width}}  {own * 1e3:9.1f}  {peer * 1e3:9.1f}  {ratio:5.2f}x  {spread:.2f}"
        )
