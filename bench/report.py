"""The records as Markdown tables and SVG plots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastspeech.bench.record import load

TIMINGS = ("graph", "cold", "warm", "")
"""The best a record has of these stands in the tables: the first needs no launches, the second finds no warm cache."""


def write(results: Path) -> Path:
    """Writes <results>/README.md and its plots, of the latest record of each device; returns its path.

    Raises:
        FileNotFoundError: no records there.
    """
    latest = {path.parent.name: path for path in sorted(results.glob("*/*.json"))}
    if not latest:
        raise FileNotFoundError(f"no records in {results}: run `python -m bench kernels` or `python -m bench models`")
    text = ["# Results", "", "By `python -m bench report` from the records in this folder, the latest of each device."]
    for device, path in latest.items():
        text += ["", *_device(load(path), path, results / device)]
    page = results / "README.md"
    page.write_text("\n".join(text) + "\n", encoding="utf-8")
    return page


def _device(record: dict[str, Any], path: Path, folder: Path) -> Iterator[str]:
    about, versions = record["device"], record["versions"]
    yield f"## {about['name']}"
    yield ""
    yield f"`{record['command']}`, {record['created']}, commit {str(record['commit'])[:10]}; " + ", ".join(
        f"{name} {version}" for name, version in {**about, **versions}.items() if name != "name" and version
    )
    ceilings = record["ceilings"]
    rates = ", ".join(f"{rate / 1e12:.2f} Tflop/s in {dtype}" for dtype, rate in ceilings["flops_per_s"].items())
    yield ""
    yield f"Measured ceilings: copies {ceilings['copy_bytes_per_s'] / 1e9:.0f} GB/s, matrix products {rates}."
    rows = [row for row in record["rows"] if "samples_s" in row]
    ops = [row for row in rows if row["kind"] == "op"]
    models = [row for row in rows if row["kind"] == "model"]
    for name, kind in (("roofline", ops), ("speed-ups", models), ("length", models)):
        if kind:
            _PLOTS[name](kind, record, folder / f"{name}.svg")
            yield ""
            yield f"![{name}]({path.parent.name}/{name}.svg)"
    yield from _ops(ops)
    yield from _models(models)
    faults = [row for row in record["rows"] if "fault" in row]
    if faults:
        yield ""
        yield "Not measured, since wrong or failing: " + "; ".join(
            f"{row['name']} {row.get('case', '')} by {row.get('contender', '')}: {row['fault'].splitlines()[0]}"
            for row in faults
        )


def _ops(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    yield ""
    yield "### Ops"
    yield ""
    yield "Median time, its share of the bound that bytes or operations set, and the gain over the reference."
    yield ""
    yield "| op | case | dtype | contender | time | of the bound | over the reference |"
    yield "|---|---|---|---|---|---|---|"
    for group in _by(rows, "name", "case"):
        timing = next(t for t in TIMINGS if any(row["timing"] == t for row in group))
        group = [row for row in group if row["timing"] == timing]
        reference = next((row["median_s"] for row in group if row["contender"] == "reference"), math.nan)
        for row in group:
            share = f"{row['bound_share']:.0%} ({row['bound_by']})"
            gain = f"{reference / row['median_s']:.2f}x"
            yield (
                f"| {row['name']} | {row['case']} | {row['dtype']} | {row['contender']} | "
                f"{_time(row['median_s'])} {timing} | {share} | {gain} |"
            )


def _models(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    yield ""
    yield "### Models"
    yield ""
    yield "Random weights, the same in both libraries. A token's time includes the search."
    yield ""
    yield "| model | part | contender | time | x real time | operators | gain |"
    yield "|---|---|---|---|---|---|---|"
    for group in _by(rows, "name", "case"):
        ours = next((row["median_s"] for row in group if row["contender"] == "fastspeech"), math.nan)
        for row in group:
            rate = f"{row['realtime']:.1f}" if "realtime" in row else ""
            gain = "" if row["contender"] == "fastspeech" else f"{row['median_s'] / ours:.2f}x"
            yield (
                f"| {row['name']} | {row['case']} | {row['contender']} | {_time(row['median_s'])} | {rate} | "
                f"{row['dispatched']:.0f} | {gain} |"
            )
    yield ""
    yield "Growth with length, time ~ seconds^x at the smallest batch: " + "; ".join(
        f"{name}, {part}, {contender}: x = {exponent:.2f}" for name, part, contender, exponent in exponents(rows)
    )


def exponents(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str, str, float]]:
    """(model, part, contender, x) of time ~ seconds^x, least squares of the logarithms."""
    for group in _by(rows, "name", "part", "contender"):
        least = min(row["batch"] for row in group)
        points = [(math.log(r["seconds"]), math.log(r["median_s"])) for r in group if r["batch"] == least]
        if len(points) < 2:
            continue
        mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
        slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
        yield group[0]["name"], group[0]["part"], group[0]["contender"], slope


def _by(rows: Iterable[dict[str, Any]], *names: str) -> list[list[dict[str, Any]]]:
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.values())


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _axes(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fastspeech"  # the same plot gives the same file
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(width, height), layout="constrained")


def _finish(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _roofline(rows: Sequence[dict[str, Any]], record: dict[str, Any], path: Path) -> None:
    figure, axes = _axes(8, 5)
    ceilings = record["ceilings"]
    copy = ceilings["copy_bytes_per_s"]
    intensities = [row["flops"] / row["bytes"] for row in rows]
    low, high = min(intensities) / 2, max(max(intensities) * 2, 1e3)
    for dtype, rate in ceilings["flops_per_s"].items():
        ridge = rate / copy
        axes.plot([low, ridge, max(high, ridge)], [low * copy, rate, rate], label=f"measured ceiling, {dtype}")
    markers = iter("osD^vP*Xhd<>8p" * 3)
    for group in _by(rows, "name", "contender"):
        if group[0]["contender"] == "compiled reference":
            continue
        best = [min(case, key=lambda row: TIMINGS.index(row["timing"])) for case in _by(group, "case")]
        x = [row["flops"] / row["bytes"] for row in best]
        y = [row["flops"] / row["median_s"] for row in best]
        axes.plot(x, y, next(markers), markersize=5, label=f"{best[0]['name']}, {best[0]['contender']}")
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="operations a second")
    axes.grid(True, which="both", alpha=0.2)
    figure.legend(loc="outside right upper", fontsize=7)
    _finish(figure, path)


def _speed_ups(rows: Sequence[dict[str, Any]], record: dict[str, Any], path: Path) -> None:
    bars = []
    for group in _by(rows, "name", "case"):
        ours = next((row for row in group if row["contender"] == "fastspeech"), None)
        peers = [row for row in group if row is not ours]
        if ours is not None and peers:
            best = min(peers, key=lambda row: row["median_s"])
            bars.append((f"{ours['name']}, {ours['case']}", best["median_s"] / ours["median_s"]))
    figure, axes = _axes(8, 0.8 + 0.24 * len(bars))
    names, gains = [name for name, _ in bars][::-1], [gain for _, gain in bars][::-1]
    drawn = axes.barh(names, gains, color=["#2a7f9e" if gain >= 1 else "#b5483a" for gain in gains])
    axes.bar_label(drawn, fmt="%.2fx", fontsize=7, padding=2)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.tick_params(axis="y", labelsize=7)
    axes.set(xlabel="times as fast as the fastest way to run transformers")
    axes.margins(x=0.12)
    _finish(figure, path)


def _length(rows: Sequence[dict[str, Any]], record: dict[str, Any], path: Path) -> None:
    figure, axes = _axes(8, 5)
    for group in _by([row for row in rows if row["part"] == "whole"], "name", "contender"):
        least = min(row["batch"] for row in group)
        points = sorted((row["seconds"], row["median_s"]) for row in group if row["batch"] == least)
        style = "-o" if group[0]["contender"] == "fastspeech" else "--x"
        axes.plot(*zip(*points, strict=True), style, markersize=4, label=f"{group[0]['name']}, {group[0]['contender']}")
    axes.set(xscale="log", yscale="log", xlabel="seconds of audio", ylabel="seconds to transcribe, smallest batch")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(fontsize=7)
    _finish(figure, path)


_PLOTS = {"roofline": _roofline, "speed-ups": _speed_ups, "length": _length}
