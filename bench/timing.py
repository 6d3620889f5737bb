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

FLUSH_BYTES = 2**30
"""Read before a cold call: many times any L2, and 0.2 ms of work on the fastest GPU, in which the call is launched."""


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

    def percentile(self, percent: float) -> float:
        """The smallest sample that so many per cent of all samples do not exceed."""
        return sorted(self.samples)[max(0, -int(-len(self.samples) * percent // 100) - 1)]

    def each_of(self, calls: int) -> Times:
        """Of one of so many calls that a sample holds."""
        return Times([sample / calls for sample in self.samples])


def interleaved(
    functions: Mapping[str, Function],
    device: torch.device,
    budget_s: float = 2.0,
    cold: bool = False,
    took: Mapping[str, float] | None = None,
) -> dict[str, Times]:
    """Times of each function, 5 to 200 rounds of all of them within about `budget_s`; 3 where one round takes longer.
    Each is called first to warm up, unless `took` says how many seconds it took before.

    On a GPU a sample lies between two events. It begins with the GPU idle, so that it holds the wait for launches where
    these are slower than the kernels. `cold`, on a GPU only: it begins behind a read of `FLUSH_BYTES`, so that the
    caches hold nothing of use and as much is launched by then as the CPU can launch meanwhile.
    """
    sampler = _on_gpu(device, cold) if device.type == "cuda" else _on_cpu
    if took is None:
        took = {name: sampler(function, 1) for name, function in functions.items()}
    repeats = {name: _repeats(took[name], function, device) for name, function in functions.items()}
    samples: dict[str, list[float]] = {name: [] for name in functions}
    began = time.perf_counter()
    rounds, least = 0, 5
    while rounds < least or (rounds < 200 and time.perf_counter() - began < budget_s):
        for name, function in functions.items():
            samples[name].append(sampler(function, repeats[name]))
        rounds += 1
        if rounds == 1 and time.perf_counter() - began > budget_s:
            least = 3
    return {name: Times(taken) for name, taken in samples.items()}


def _repeats(first: float, function: Function, device: torch.device) -> int:
    """How often a sample calls a function, whose first call took so long."""
    if device.type == "cuda" or first >= 10 * SHORTEST_S:
        return 1
    return max(1, round(SHORTEST_S / max(_on_cpu(function, 1), 1e-7)))


def _on_cpu(function: Function, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - start) / repeats


def _on_gpu(device: torch.device, cold: bool) -> Callable[[Function, int], float]:
    flush = _flush(device) if cold else None
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def sample(function: Function, repeats: int) -> float:
        torch.cuda.synchronize(device)
        if flush is not None:
            flush.sum()  # a read, as lines written would have to be put back within the sample
        start.record()
        for _ in range(repeats):
            function()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3 / repeats

    return sample


def _flush(device: torch.device) -> torch.Tensor:
    return torch.ones(FLUSH_BYTES // 4, device=device)


def graphed(function: Function, device: torch.device, calls: int = 20) -> Function:
    """A replay of `calls` captured calls; divide its time by as many. What is left is the GPU's own time.

    Raises:
        RuntimeError: a function that asks the GPU for a value, or does something else that no graph can hold.
    """
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            function()
    return graph.replay
