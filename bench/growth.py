"""How cost grows: exponents fitted to a record's rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from fastspeech.bench.plan import Row

LEAST_RANGE, LEAST_POINTS = 4.0, 3
"""Of a fit; an exponent from less says nothing."""

EXPECTED = {
    ("encoder", "seconds"): "1 where projections bind, towards 2 as attention does",
    ("token", "seconds"): "0 where weights bind, towards 1 as cross-attention does",
    ("whole", "seconds"): "0 to 1, as the tokens are the same",
    ("end to end", "seconds"): "0 to 1, as the tokens are the same",
    ("encoder", "batch"): "1; below it where a small batch leaves the device idle",
    ("token", "batch"): "0 while reading weights binds, then 1",
    ("whole", "batch"): "between its parts'",
    ("end to end", "batch"): "between its parts'",
    ("mimi", "batch"): "1; below it where a small batch leaves the device idle",
    ("lm", "batch"): "0 while reading weights binds, then 1",
    ("frame", "batch"): "between its parts'",
}


@dataclass(frozen=True)
class Growth:
    """time ~ x^exponent of one contender, by least squares of the logarithms.

    Attributes:
        along: "seconds" of audio, at the smallest batch, or "batch", at the length that most batches have.
        points: (x, median seconds), ascending.
        fit: the coefficient of determination of the logarithms; None where times hardly vary.
        expected: what the arithmetic says of the exponent.
    """

    name: str
    part: str
    contender: str
    along: str
    points: tuple[tuple[float, float], ...]
    exponent: float
    fit: float | None
    expected: str


def fitted(rows: Iterable[Row]) -> Iterator[Growth]:
    """Every exponent that the rows give enough for: three points, over a factor of four."""
    for group in grouped([row for row in rows if "median_s" in row and "part" in row], "name", "part", "contender"):
        least = min(row["batch"] for row in group)
        yield from _fit(group, "seconds", [row for row in group if row["batch"] == least and "seconds" in row])
        lengths = grouped([{**row, "length": row.get("seconds")} for row in group], "length")
        yield from _fit(group, "batch", max(lengths, key=len))


def _fit(group: list[Row], along: str, chosen: list[Row]) -> Iterator[Growth]:
    points = tuple(sorted({row[along]: row["median_s"] for row in chosen}.items()))
    if len(points) < LEAST_POINTS or points[-1][0] < LEAST_RANGE * points[0][0]:
        return
    x, y = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
    spread = sum((b - mean_y) ** 2 for b in y)
    rest = sum((b - mean_y - slope * (a - mean_x)) ** 2 for a, b in zip(x, y, strict=True))
    # Of times that vary by less than a fifth a line explains nothing, however well it fits.
    fit = None if math.exp(max(y) - min(y)) < 1.2 else 1 - rest / spread
    first = group[0]
    expected = EXPECTED.get((first["part"], along), "")
    yield Growth(first["name"], first["part"], first["contender"], along, points, slope, fit, expected)


def grouped(rows: Iterable[Row], *names: str) -> list[list[Row]]:
    """Rows that agree in these, in the order of their first."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.values())
