"""The plots of a record, as SVG."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastspeech.bench.growth import grouped
from fastspeech.bench.plan import Row

TIMINGS = ("graph", "cold", "warm", "")
"""The best a record has of these stands in tables and plots: the first needs no launches, the second finds no cache."""

OURS = ("triton", "cuda", "fastspeech")

_COLOURS = ("#1b6f8f", "#c4502f", "#4f8a3c", "#8a5aa8", "#b08a1e", "#5b6470", "#c0588c", "#2f9c95")


def of_record(record: dict[str, Any], folder: Path) -> list[tuple[str, Path]]:
    """Draws what the record has rows for; (title, file) of each plot."""
    rows = [row for row in record["rows"] if "samples_s" in row]
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("op", "model", "stream")}
    wanted: tuple[tuple[str, str, list[Row], Callable[..., None]], ...] = (
        ("Roofline of the ops", "roofline", kinds["op"], _roofline),
        ("Ops against their references and peers", "op-gains", kinds["op"], _op_gains),
        ("Models against transformers", "speed-ups", kinds["model"], _speed_ups),
        ("Time against length", "length", kinds["model"], _length),
        ("Time against batch", "batch", kinds["model"], _batch),
        ("A frame of live streams", "streams", kinds["stream"], _streams),
    )
    drawn = []
    for title, name, chosen, draw in wanted:
        if chosen:
            path = folder / f"{name}.svg"
            draw(chosen, record, path)
            drawn.append((title, path))
    return drawn


def best_timing(rows: Sequence[Row]) -> list[Row]:
    """The rows of the first of TIMINGS that any has."""
    timing = next(t for t in TIMINGS if any(row["timing"] == t for row in rows))
    return [row for row in rows if row["timing"] == timing]


def _axes(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fastspeech"  # the same plot gives the same file
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)


def _finish(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _roofline(rows: Sequence[Row], record: dict[str, Any], path: Path) -> None:
    """Of each case of each op the fastest of ours, or the reference, under the ceilings."""
    figure, grid = _axes(8, 5)
    axes = grid[0, 0]
    ceilings = record["ceilings"]
    copy = ceilings["copy_bytes_per_s"]
    able = [row for row in rows if row["flops"]]
    intensities = [row["flops"] / row["bytes"] for row in able]
    low, high = min(intensities) / 2, max(max(intensities) * 2, 1e3)
    for (dtype, rate), style in zip(ceilings["flops_per_s"].items(), itertools.cycle(("-", "--", ":")), strict=False):
        ridge = rate / copy
        line = [low * copy, rate, rate]
        axes.plot([low, ridge, max(high, ridge)], line, style, color="black", lw=1, label=f"measured ceiling, {dtype}")
    markers = itertools.cycle("osD^vP*X")
    colours = itertools.cycle(_COLOURS)
    for group in grouped(able, "name"):
        marker, colour = next(markers), next(colours)
        served = [row for row in group if row["contender"] in (*OURS, "reference")]
        for number, case in enumerate(grouped(served, "case")):
            fastest = min(best_timing(case), key=lambda row: row["median_s"])
            ours = fastest["contender"] in OURS
            axes.plot(
                fastest["flops"] / fastest["bytes"],
                fastest["flops"] / fastest["median_s"],
                marker,
                color=colour,
                fillstyle="full" if ours else "none",
                markersize=6,
                label=group[0]["name"] if number == 0 else None,
            )
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="operations a second")
    axes.set_title("a marker a case; filled: our kernel, empty: the PyTorch reference", fontsize=9)
    axes.grid(True, which="major", alpha=0.25)
    figure.legend(loc="outside right upper", fontsize=7)
    _finish(figure, path)


def _op_gains(rows: Sequence[Row], record: dict[str, Any], path: Path) -> None:
    bars = []
    for case in grouped(rows, "name", "case"):
        timed = best_timing(case)
        own = [row for row in timed if row["contender"] in OURS] or [r for r in timed if r["contender"] == "reference"]
        ours = min(own, key=lambda row: row["median_s"])
        others = [row for row in timed if row["contender"] not in (*OURS, ours["contender"])]
        if others:
            rival = min(others, key=lambda row: row["median_s"])
            gain = rival["median_s"] / ours["median_s"]
            bars.append((f"{ours['name']}, {ours['case']}: {ours['contender']} over {rival['contender']}", gain))
    _bars(bars, "times as fast as the fastest other way to compute it", path)


def _speed_ups(rows: Sequence[Row], record: dict[str, Any], path: Path) -> None:
    bars = []
    for group in grouped(rows, "name", "case"):
        ours = next((row for row in group if row["contender"] == "fastspeech"), None)
        peers = [row for row in group if row is not ours]
        if ours is not None and peers:
            best = min(peers, key=lambda row: row["median_s"])
            bars.append((f"{ours['name']}, {ours['case']}", best["median_s"] / ours["median_s"]))
    _bars(bars, "times as fast as the fastest way to run transformers", path)


def _bars(bars: list[tuple[str, float]], label: str, path: Path) -> None:
    if not bars:
        return
    figure, grid = _axes(9, 0.9 + 0.22 * len(bars))
    axes = grid[0, 0]
    names, gains = [name for name, _ in bars][::-1], [gain for _, gain in bars][::-1]
    drawn = axes.barh(names, gains, color=[_COLOURS[0] if gain >= 1 else _COLOURS[1] for gain in gains])
    axes.bar_label(drawn, fmt="%.2fx", fontsize=7, padding=2)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.tick_params(axis="y", labelsize=7)
    axes.set(xlabel=label, ylim=(-0.7, len(bars) - 0.3))
    axes.margins(x=0.12)
    _finish(figure, path)


def _length(rows: Sequence[Row], record: dict[str, Any], path: Path) -> None:
    least = {group[0]["name"]: min(row["batch"] for row in group) for group in grouped(rows, "name")}
    rows = [row for row in rows if row["batch"] == least[row["name"]]]
    _curves(rows, "seconds", "seconds of audio, smallest batch", path)


def _batch(rows: Sequence[Row], record: dict[str, Any], path: Path) -> None:
    most = {group[0]["name"]: _usual([row["seconds"] for row in group]) for group in grouped(rows, "name")}
    _curves([row for row in rows if row["seconds"] == most[row["name"]]], "batch", "clips at once", path)


def _usual(values: Sequence[float]) -> float:
    return max(set(values), key=lambda value: (list(values).count(value), value))


def _streams(rows: Sequence[Row], record: dict[str, Any], path: Path) -> None:
    from fastspeech.bench.streams import DEADLINE_S

    _curves(rows, "batch", "streams", path, ("mimi", "lm", "frame"), DEADLINE_S)


def _curves(
    rows: Sequence[Row],
    along: str,
    label: str,
    path: Path,
    parts: Sequence[str] = ("encoder", "token", "whole"),
    deadline: float | None = None,
) -> None:
    """A panel a part: ours in full lines, the fastest way to run transformers in broken ones."""
    figure, grid = _axes(3.6 * len(parts), 4.2, len(parts))
    handles: dict[str, Any] = {}
    colours = dict(zip(dict.fromkeys(row["name"] for row in rows), itertools.cycle(_COLOURS), strict=False))
    for axes, part in zip(grid[0], parts, strict=True):
        for name, group in ((g[0]["name"], g) for g in grouped([r for r in rows if r["part"] == part], "name")):
            for library, style, chosen in (
                ("fastspeech", "-o", [row for row in group if row["contender"] == "fastspeech"]),
                ("transformers", "--x", [row for row in group if row["contender"].startswith("transformers")]),
            ):
                points = sorted((x[0][along], min(row["median_s"] for row in x)) for x in grouped(chosen, along))
                if points:
                    (line,) = axes.plot(*zip(*points, strict=True), style, color=colours[name], markersize=4, lw=1.2)
                    handles[f"{name}, {library}"] = line
        if deadline:
            axes.axhline(deadline, color="black", linewidth=0.8, linestyle=":")
        axes.set(xscale="log", yscale="log", xlabel=label, title=part)
        axes.grid(True, which="major", alpha=0.25)
        ticks = sorted({row[along] for row in rows})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=7)
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.tick_params(axis="y", which="both", labelsize=7)
    grid[0, 0].set_ylabel("seconds" + (f", dotted: {deadline:g}" if deadline else ""))
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=7)
    _finish(figure, path)
