"""The records as Markdown tables and SVG plots."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastspeech.bench import plots
from fastspeech.bench.growth import Growth, fitted, grouped
from fastspeech.bench.plan import Row
from fastspeech.bench.record import load

_INTRODUCTION = """# Results

Written by `python -m bench report` from the records in this folder, the latest of each device. Every number was taken
only after its contender's result had been checked: an op's against float64, a model's against transformers. Contenders
take turns within one run, so that what slows the machine slows all of them; times are medians. A model's weights are
random, and the same in both libraries; its text is forced to a number of tokens."""

_OPS = """Time of one call, and the share of it that the machine's own limit explains: the bytes that must be moved at
the measured rate of copies, or the operations at that of matrix products, whichever takes longer. `graph`: within a
CUDA graph, without launches; `cold`: nothing in the caches; `warm`: called over and over, launches included. The gain
is over the reference, the plain PyTorch meaning of the op, as it is."""

_MODELS = """`encoder`: samples or features to hidden states; `encoder, recorded`: as a GPU's `generate` has it.
`token`: one step of decoding, search included. `whole`: a transcription, encoder and all tokens; `end to end` begins
with samples on the host and makes their features too. The peak is what a call holds in memory beyond what was held
before; operators are those that a call, or a token, hands to PyTorch. The gain is ours over that contender."""

_STREAMS = """A frame is 80 ms of every stream: `mimi`, the codec's encoder, then `lm`, the decoder with its head, and
`frame`, both, with the tokens on the host. The windows of all streams are full."""

_HELD = """Streams whose frames are done within 80 ms at the 99th percentile, by doubling and bisection: `fastspeech`
is a StreamingTranscriber with all that a service does on the host, the rest the models alone."""

_GROWTH = """Exponents x of time ~ length^x (at the smallest batch) and time ~ batch^x, by least squares of the
logarithms; the fit is the coefficient of determination, left out where times hardly vary."""

_HOST = "Media decoding, changes of rate and the models' feature extraction beside real time, one call at a time."

_AIMS = "For an H200 in bfloat16."


def write(results: Path) -> Path:
    """Writes <results>/README.md and its plots, of the latest record of each device; returns its path.

    Raises:
        FileNotFoundError: no records there.
    """
    latest = {path.parent.name: path for path in sorted(results.glob("*/*.json"))}
    if not latest:
        raise FileNotFoundError(f"no records in {results}: run `python -m bench kernels` or `python -m bench models`")
    text = [_INTRODUCTION]
    for device, path in latest.items():
        text += ["", *_device(load(path), path, results / device)]
    page = results / "README.md"
    page.write_text("\n".join(text) + "\n", encoding="utf-8")
    return page


def _device(record: dict[str, Any], path: Path, folder: Path) -> Iterator[str]:
    about, versions, ceilings = record["device"], record["versions"], record["ceilings"]
    yield f"## {about['name']}"
    yield ""
    if record.get("rehearsal"):
        yield "**A rehearsal: sizes are shrunk and the times mean nothing.**"
        yield ""
    yield f"Record: [{path.name}]({path.parent.name}/{path.name}). Repeat it with:"
    yield ""
    yield "```sh"
    yield from dict.fromkeys(run["command"] for run in record["runs"])
    yield "```"
    yield ""
    rates = ", ".join(f"{rate / 1e12:.2f} Tflop/s in {dtype}" for dtype, rate in ceilings["flops_per_s"].items())
    for name, value in (
        ("taken", ", ".join(dict.fromkeys(run["created"] for run in record["runs"]))),
        ("commit", ", ".join(dict.fromkeys(str(run["commit"])[:10] for run in record["runs"]))),
        ("device", _listed(about)),
        ("versions", _listed(versions)),
        ("measured ceilings", f"copies {ceilings['copy_bytes_per_s'] / 1e9:.0f} GB/s, matrix products {rates}"),
        *((f"clocks at {run['created'][11:16]}", _listed(run["clocks"])) for run in record["runs"] if run["clocks"]),
    ):
        yield f"- {name}: {value}"
    if "aims" in record:
        yield from _section("Aims", _AIMS, _aims(record["aims"]))
    for title, file in plots.of_record(record, folder):
        yield ""
        yield f"![{title}]({path.parent.name}/{file.name})"
    rows = [row for row in record["rows"] if "samples_s" in row]
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in ("op", "model", "stream", "host")}
    held = [row for row in record["rows"] if row["kind"] == "held" and "streams" in row]
    yield from _section("Ops", _OPS, _ops(kinds["op"]))
    yield from _section("Models", _MODELS, _models(kinds["model"]))
    yield from _section("Streams held", _HELD, _held(held))
    yield from _section("A frame of live streams", _STREAMS, _models(kinds["stream"]))
    yield from _section("Growth", _GROWTH, _growth(fitted(kinds["model"] + kinds["stream"])))
    yield from _section("The host", _HOST, _host(kinds["host"]))
    for title, word in (("Left out", "left_out"), ("Faults", "fault")):
        yield from _section(title, "", _reasons([row for row in record["rows"] if word in row], word))
    yield from _section("Not begun within the time given", "", (f"- {name}" for name in record.get("waiting", [])))


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if name != "name" and value is not None)


def _section(title: str, text: str, lines: Iterable[str]) -> Iterator[str]:
    """A heading, its text and its lines; nothing where there are no lines."""
    found = list(lines)
    if found:
        yield from ("", f"### {title}", "", *([text, ""] if text else []), *found)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Nothing where there are no rows."""
    found = list(rows)
    if found:
        yield f"| {' | '.join(head)} |"
        yield "|" + "---|" * len(head)
        for row in found:
            yield f"| {' | '.join(row)} |"


def _aims(aims: Sequence[dict[str, Any]]) -> Iterator[str]:
    def of(aim: dict[str, Any]) -> list[str]:
        word = "at most" if aim["at_most"] else "at least"
        return [aim["aim"], f"{word} {aim['target']:,g} {aim['unit']}", verdict(aim), aim["bound"]]

    yield from _table(("figure", "aim", "measured", "physical bound"), map(of, aims))


def verdict(aim: dict[str, Any]) -> str:
    """What was measured of an aim, and by how much that meets or misses it."""
    if aim["measured"] is None:
        return "not measured"
    word = "met" if aim["met"] else "missed"
    return f"{aim['measured']:,.4g} {aim['unit']}: {word}, {aim['reached']:.2f} of the aim"


def _ops(rows: Sequence[Row]) -> Iterator[str]:
    def lines() -> Iterator[list[str]]:
        for case in grouped(rows, "name", "case"):
            timed = plots.best_timing(case)
            reference = next((row["median_s"] for row in timed if row["contender"] == "reference"), math.nan)
            for row in timed:
                yield [
                    row["name"],
                    f"{row['case']}, {row['dtype']}",
                    row["contender"],
                    f"{_time(row['median_s'])} {row['timing']}",
                    f"{row['bound_share']:.0%} ({row['bound_by']})",
                    f"{reference / row['median_s']:.2f}x",
                ]

    yield from _table(("op", "case", "contender", "time", "of the bound", "gain"), lines())


def _models(rows: Sequence[Row]) -> Iterator[str]:
    def lines() -> Iterator[list[str]]:
        for group in grouped(rows, "name", "case"):
            ours = next((row["median_s"] for row in group if row["contender"] == "fastspeech"), math.nan)
            for row in group:
                yield [
                    row["name"],
                    row["case"],
                    row["contender"],
                    _time(row["median_s"]),
                    f"{row['realtime']:.4g}" if "realtime" in row else "",
                    _number(row.get("dispatched")),
                    *([_number(row.get("launches"))] * launched),
                    _size(row.get("peak_bytes")),
                    "" if row["contender"] == "fastspeech" else f"{row['median_s'] / ours:.2f}x",
                ]

    launched = any("launches" in row for row in rows)
    head = ["model", "part", "contender", "time", "x real time", "operators", "peak", "gain"]
    if launched:
        head.insert(6, "launches")
    yield from _table(head, lines())


def _held(rows: Sequence[Row]) -> Iterator[str]:
    def of(row: Row) -> list[str]:
        late = f"{row['p99_s'] * 1e3:.1f} ms" if "p99_s" in row else ""
        return [row["name"], row["contender"], str(row["streams"]), late, row["more"]]

    yield from _table(("model", "contender", "streams", "99th percentile", "more"), map(of, rows))


def _growth(found: Iterable[Growth]) -> Iterator[str]:
    def of(group: list[Growth]) -> list[str]:
        ours, points = group[0], group[0].points
        ends = f"{points[0][0]:g} to {points[-1][0]:g}"
        along = f"length, {ends} s" if ours.along == "seconds" else f"batch, {ends}"
        each = (f"{one.contender} {one.exponent:.2f}{_fit(one)}" for one in group)
        return [ours.name, ours.part, f"{along}: {len(points)} points", "; ".join(each), ours.expected]

    groups: dict[tuple[str, str, str], list[Growth]] = {}
    for growth in found:
        groups.setdefault((growth.name, growth.part, growth.along), []).append(growth)
    yield from _table(("model", "part", "along", "exponent (fit)", "expected"), map(of, groups.values()))


def _fit(growth: Growth) -> str:
    return "" if growth.fit is None else f" ({growth.fit:.3f})"


def _host(rows: Sequence[Row]) -> Iterator[str]:
    def lines() -> Iterator[list[str]]:
        for group in grouped(rows, "name", "case"):
            ours = next((row["median_s"] for row in group if row["contender"] == "fastspeech"), math.nan)
            for row in group:
                gain = "" if row["contender"] == "fastspeech" else f"{row['median_s'] / ours:.2f}x"
                figures = [_time(row["median_s"]), f"{row['realtime']:.4g}", gain]
                yield [row["name"], row["case"], row["contender"], *figures]

    yield from _table(("what", "case", "contender", "time", "x real time", "gain"), lines())


def _reasons(rows: Sequence[Row], word: str) -> Iterator[str]:
    """One line a reason, with all that it was the reason for."""
    for group in grouped([{**row, "reason": row[word].splitlines()[0]} for row in rows], "reason"):
        whose = "; ".join(", ".join(filter(None, (r["name"], r.get("case"), r.get("contender")))) for r in group)
        yield f"- {whose}: {group[0]['reason']}"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _size(value: int | None) -> str:
    return "" if value is None else f"{value / 1e6:.3g} MB"
