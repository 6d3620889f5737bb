"""The command `python -m bench`, and `fastspeech bench`."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULTS = Path("bench") / "results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The subcommands and their options."""
    parser.add_argument(
        "--compare",
        nargs=2,
        type=Path,
        metavar=("BEFORE", "AFTER"),
        help="what became slower from one record to the other, with 95 %% confidence; exit status 1 where anything did",
    )
    commands = parser.add_subparsers(metavar="WHAT")
    for name, run, text in (
        ("kernels", _kernels, "every op by every implementation, its reference, and its peer"),
        ("models", _models, "encoder, decoder step and whole transcription against transformers"),
        ("gpu", _gpu, "both on a GPU, in parts that can be run apart"),
    ):
        command = commands.add_parser(name, help=text, description=f"Measure {text}.")
        add = command.add_argument
        add("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
        add("--only", action="append", default=[], metavar="NAME", help="one op or model; may be repeated")
        add("--budget", type=float, default=1.0, metavar="S", help="seconds for each timing (default: %(default)s)")
        add("--output", type=Path, metavar="FILE", help=f"the record (default: {RESULTS}/<device>/<date>.json)")
        add("--resume", action="store_true", help="go on with the record that is there")
        add("--compiled", action="store_true", help="also what torch.compile makes of the peers")
        if name == "gpu":
            add("--part", type=int, metavar="N", help="one part only")
            add("--parts", type=int, default=3, metavar="N", help="of so many (default: %(default)s)")
        command.set_defaults(bench=run)
    report = commands.add_parser("report", help="tables and plots of the records", description="Write the report.")
    report.add_argument("--results", type=Path, default=RESULTS, help="folder of records (default: %(default)s)")
    report.set_defaults(bench=_report)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Benchmarks of ops and models.")
    add_arguments(parser)
    return run(parser, parser.parse_args(arguments))


def run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    """What the options ask for; returns the exit status."""
    if options.compare is not None:
        return _compare(*options.compare)
    if not hasattr(options, "bench"):
        parser.error("say what to measure: kernels, models, gpu or report; or --compare two records")
    try:
        return options.bench(options)
    except KeyboardInterrupt:
        return 130


def _kernels(options: argparse.Namespace) -> int:
    from fastspeech.bench import kernels

    with _recording(options) as (device, record, ceilings):
        return _run(kernels.tasks(device, ceilings, options.only, options.compiled, options.budget), record, options)


def _models(options: argparse.Namespace) -> int:
    from fastspeech.bench import models

    with _recording(options) as (device, record, _):
        return _run(models.tasks(device, options.only, options.compiled, options.budget), record, options)


def _gpu(options: argparse.Namespace) -> int:
    from fastspeech.bench import kernels, models

    with _recording(options) as (device, record, ceilings):
        tasks = kernels.tasks(device, ceilings, options.only, options.compiled, options.budget)
        tasks += models.tasks(device, options.only, options.compiled, options.budget)
        if options.part is not None:
            tasks = tasks[options.part - 1 :: options.parts]
        return _run(tasks, record, options)


@contextmanager
def _recording(options: argparse.Namespace) -> Iterator[tuple[Any, dict[str, Any], dict[str, Any]]]:
    import torch

    from fastspeech.bench import ceilings, record

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
    options.output = options.output or record.default_path(device, RESULTS)
    kept = record.load(options.output) if options.resume and options.output.exists() else record.new(device)
    with torch.no_grad():
        if "ceilings" not in kept:
            kept["ceilings"] = ceilings.measure(device)
        yield device, kept, kept["ceilings"]


def _run(tasks: list[Any], kept: dict[str, Any], options: argparse.Namespace) -> int:
    """Runs the tasks the record does not hold yet; what one has measured is saved before the next begins."""
    from tqdm import tqdm

    from fastspeech.bench import record

    finished = set(kept.setdefault("finished", []))
    waiting = [(name, task) for name, task in tasks if name not in finished]
    faults = 0
    record.save(kept, options.output)
    with tqdm(waiting, disable=None, unit="task") as bar:
        for name, task in bar:
            bar.set_description(name)
            rows = []
            try:
                rows = list(task())
            except Exception as error:
                rows = [{"kind": "task", "name": name, "fault": f"{type(error).__name__}: {error}"[:1000]}]
            kept["rows"] += rows
            kept["finished"].append(name)
            record.save(kept, options.output)
            faults += sum("fault" in row for row in rows)
            for line in _lines(rows):
                tqdm.write(line, file=sys.stdout)
    print(f"{options.output}: {len(kept['rows'])} rows" + (f", {faults} faults" if faults else ""))
    return 1 if faults else 0


def _lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    def of(row: dict[str, Any]) -> tuple[str, str]:
        return row.get("name", ""), row.get("case", "")

    for (name, case), group in itertools.groupby(rows, of):
        yield f"{name}, {case}".rstrip(", ")
        for row in group:
            contender = f"{row.get('contender', ''):24} {row.get('timing', ''):6}"
            if "fault" in row:
                yield f"    {contender}  FAULT {row['fault'].splitlines()[0]}"
                continue
            share = f"  {row['bound_share']:6.1%} of the bound ({row['bound_by']})" if "bound_share" in row else ""
            rate = f"  {row['realtime']:8.1f} x real time" if "realtime" in row else ""
            low, high = row["quartiles_s"]
            yield f"    {contender} {row['median_s'] * 1e6:12.1f} us  [{low * 1e6:.1f}, {high * 1e6:.1f}]{share}{rate}"


def _report(options: argparse.Namespace) -> int:
    from fastspeech.bench.report import write

    print(write(options.results))
    return 0


def _compare(before: Path, after: Path) -> int:
    from fastspeech.bench.compare import compare, lines
    from fastspeech.bench.record import load

    changes = compare(load(before), load(after))
    print("\n".join(lines(changes)))
    return 1 if any(change.slower for change in changes) else 0
