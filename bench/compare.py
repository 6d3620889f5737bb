"""Whether one record is slower than another, and how sure that is."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastspeech.bench.record import key

RESAMPLES = 1000
SLOWER = 1.05
"""A slow-down below this is not called one, however sure."""


@dataclass(frozen=True)
class Change:
    """B's median time over A's, with a 95 % interval."""

    what: tuple[str, ...]
    ratio: float
    low: float
    high: float

    @property
    def slower(self) -> bool:
        return self.low > SLOWER

    @property
    def faster(self) -> bool:
        return self.high < 1 / SLOWER


def compare(first: dict[str, Any], second: dict[str, Any]) -> list[Change]:
    """The change of everything that both records measured, the worst first."""
    before = {key(row): row for row in first["rows"] if "samples_s" in row}
    changes = [
        change(key(row), before[key(row)]["samples_s"], row["samples_s"])
        for row in second["rows"]
        if "samples_s" in row and key(row) in before
    ]
    return sorted(changes, key=lambda change: -change.ratio)


def change(what: tuple[str, ...], first: Sequence[float], second: Sequence[float]) -> Change:
    """The ratio of medians, its interval by the percentile bootstrap (Efron 1979) of both samples."""
    chance = random.Random(0)
    ratios = sorted(_resampled(second, chance) / _resampled(first, chance) for _ in range(RESAMPLES))
    low, high = ratios[int(0.025 * RESAMPLES)], ratios[int(0.975 * RESAMPLES) - 1]
    return Change(what, statistics.median(second) / statistics.median(first), low, high)


def _resampled(samples: Sequence[float], chance: random.Random) -> float:
    return statistics.median(chance.choices(samples, k=len(samples)))


def lines(changes: Sequence[Change]) -> list[str]:
    """A line for each change that is sure, and a count of the rest."""
    found = []
    for item in changes:
        if item.slower or item.faster:
            verdict = "slower" if item.slower else "faster"
            name = "  ".join(filter(None, item.what))
            found.append(f"{verdict}  {item.ratio:5.2f}x  [{item.low:.2f}, {item.high:.2f}]  {name}")
    return [*found, f"{len(changes) - len(found)} unchanged within {SLOWER - 1:.0%} or their noise"]
