"""Times of functions that compute the same, taken in turn, so that drift of the machine falls on all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Function = Callable[[], Any]

SHORTEST_S = 200e-6
"""A sample on a CPU repeats its function until it takes so long, lest the clock's own cost show."""


@dataclass(frozen=True)
class Times:
    """Seconds of one call, a sample a round."""

    samples: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high


def interleaved(
    functions: Mapping[str, Function], device: torch.device, budget_s: float = 2.0, cold: bool = False
) -> dict[str, Times]:
    """Times of each function, 5 to 200 rounds of all of them within about `budget_s`.

    On a GPU a sample lies between two events, so that it holds the wait for launches where these are slower than the
    kernels. `cold`: what the caches held is driven out before each call, on a GPU only.
    """
    sampler = _on_gpu(device, cold) if device.type == "cuda" else _on_cpu
    for function in functions.values():
        function()
    repeats = {name: _repeats(function, device) for name, function in functions.items()}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    deadline = time.perf_counter() + budget_s
    rounds = 0
    while rounds < 5 or (rounds < 200 and time.perf_counter() < deadline):
        for name, function in functions.items():
            samples[name].append(sampler(function, repeats[name]))
        rounds += 1
    return {name: Times(taken) for name, taken in samples.items()}


def _repeats(function: Function, device: torch.device) -> int:
    if device.type == "cuda":
        return 1
    return max(1, round(SHORTEST_S / max(_on_cpu(function, 1), 1e-7)))


def _on_cpu(function: Function, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def _on_gpu(device: torch.device, cold: bool) -> Callable[[Function, int], float]:
    # Twice the largest L2 there is.
    flush = torch.empty(256 * 2**20 if cold else 0, dtype=torch.int8, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample(function: Function, repeats: int) -> float:
        flush.zero_()
        torch.cuda.synchronize(device)
        start.record()
        function()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3

    return sample


def graphed(function: Function, device: torch.device, calls: int = 20) -> Function:
    """A replay of `calls` captured calls; divide its time by as many. What is left is the GPU's own time."""
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            function()
    return graph.replay
