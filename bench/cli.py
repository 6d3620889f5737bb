"""The command `python -m bench`, and `fastspeech bench`."""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESULTS = Path("bench") / "results"

PARTS = ("ops", "cohere", "small", "kyutai", "host")
"""Of `gpu`, each to take less than ten minutes."""


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
        ("models", _models, "models against transformers, live streams, media decoding and features"),
        ("gpu", _gpu, "all that matters on a GPU, and its aims, in parts that can be run apart"),
    ):
        command = commands.add_parser(name, help=text, description=f"Measure {text}.")
        add = command.add_argument
        add("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
        add("--only", action="append", default=[], metavar="NAME", help="one op or model, or host; may be repeated")
        budget = 0.25 if name == "gpu" else 0.5
        add("--budget", type=float, default=budget, metavar="S", help="seconds for a timing (default: %(default)s)")
        add("--output", type=Path, metavar="FILE", help=f"the record (default: {RESULTS}/<device>/<date>.json)")
        add("--resume", action="store_true", help="go on with the record that is there")
        add("--no-compile", action="store_true", help="leave out what torch.compile makes of references and peers")
        limit = 540.0 if name == "gpu" else None
        add("--limit", type=float, default=limit, metavar="S", help="begin nothing after so many seconds")
        if name == "models":
            text = "on a CPU leave out what is predicted to take longer (default: %(default)s)"
            add("--longest", type=float, default=90.0, metavar="S", help=text)
        if name == "gpu":
            add("--part", choices=PARTS, help="one part only")
            add("--rehearse", action="store_true", help="run all of it on the CPU at sizes that anything can run")
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
        print("interrupted; --resume goes on", file=sys.stderr)
        return 130
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))


def _kernels(options: argparse.Namespace) -> int:
    from fastspeech.bench import kernels

    with _recording(options) as (plan, kept):
        return _run(kernels.tasks(plan, kept["ceilings"]), kept, options, plan)


def _models(options: argparse.Namespace) -> int:
    from fastspeech.bench import host, models, streams

    with _recording(options) as (plan, kept):
        tasks = [*models.tasks(plan), *streams.tasks(plan), *host.tasks(plan), *models.compiled_tasks(plan)]
        return _run(tasks, kept, options, plan)


def _gpu(options: argparse.Namespace) -> int:
    from fastspeech.bench import host, kernels, models, streams

    with _recording(options) as (plan, kept):
        if plan.device.type != "cuda" and not plan.rehearsal:
            raise ValueError("gpu needs a CUDA device; --rehearse runs all of it on the CPU, and measures nothing")
        cohere, small = ("cohere_asr",), ("moonshine", "speech_to_text")
        tasks = {
            "ops": kernels.tasks(plan, kept["ceilings"]),
            "cohere": models.tasks(plan, cohere) + models.compiled_tasks(plan, cohere),
            "small": models.tasks(plan, small) + models.compiled_tasks(plan, small),
            "kyutai": streams.tasks(plan),
            "host": host.tasks(plan),
        }
        parts = PARTS if options.part is None else (options.part,)
        status = _run([task for part in parts for task in tasks[part]], kept, options, plan)
        if plan.rehearsal:
            print("a rehearsal: these are no measurements")
        print("\n".join(_aim_lines(kept.get("aims", []))))
        return status


@contextmanager
def _recording(options: argparse.Namespace) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The plan, and the record that it adds to."""
    import torch

    from fastspeech.bench import ceilings, record
    from fastspeech.bench.plan import Plan

    rehearsal = getattr(options, "rehearse", False)
    chosen = "cpu" if rehearsal else options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(chosen)
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    plan = Plan(
        device=device,
        names=tuple(options.only),
        budget_s=0.0 if rehearsal else options.budget,
        compiled=not options.no_compile,
        longest_s=getattr(options, "longest", 90.0),
        rehearsal=rehearsal,
    )
    if rehearsal and options.output is None:
        options.output = Path(tempfile.gettempdir()) / "rehearsal.json"
    options.output = options.output or record.default_path(device, RESULTS)
    kept = record.load(options.output) if options.resume and options.output.exists() else record.new(device)
    note = record.begin(kept, device)
    if rehearsal:
        kept["rehearsal"] = True
    with torch.no_grad():
        if "ceilings" not in kept:
            kept["ceilings"] = ceilings.measure(device)
        yield plan, kept
    if device.type == "cuda":
        note["clocks_after"] = record.clocks(device)
        record.save(kept, options.output)


def _run(tasks: list[Any], kept: dict[str, Any], options: argparse.Namespace, plan: Any) -> int:
    """Runs the tasks the record does not hold yet; what one has measured is saved before the next begins."""
    from tqdm import tqdm

    from fastspeech.bench import aims, record

    finished = set(kept.setdefault("finished", []))
    waiting = [(name, task) for name, task in tasks if name not in finished]
    faults = 0
    began = time.perf_counter()
    with tqdm(waiting, disable=None, unit="task") as bar:
        for name, task in bar:
            if options.limit is not None and time.perf_counter() - began > options.limit:
                continue
            bar.set_description(name)
            rows = []
            try:
                rows = list(task())
            except Exception as error:
                rows = [{"kind": "task", "name": name, "fault": f"{type(error).__name__}: {error}"[:1000]}]
            for row in rows:
                row["run"] = len(kept["runs"]) - 1
            kept["rows"] += rows
            kept["finished"].append(name)
            if plan.device.type == "cuda" or plan.rehearsal:
                kept["aims"] = aims.judged(kept["rows"])
            record.save(kept, options.output)
            faults += sum("fault" in row for row in rows)
            for line in _lines(rows):
                tqdm.write(line, file=sys.stdout)
    left = [name for name, _ in waiting if name not in kept["finished"]]
    kept["waiting"] = [*(name for name in kept.get("waiting", []) if name not in kept["finished"] + left), *left]
    record.save(kept, options.output)
    told = [f"{len(kept['rows'])} rows"]
    told += [f"{faults} faults"] * bool(faults)
    told += [f"{len(left)} tasks left by --limit, for --resume"] * bool(left)
    print(f"{options.output}: {', '.join(told)}")
    return 1 if faults else 0


def _lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    def of(row: dict[str, Any]) -> tuple[str, str]:
        return row.get("name", ""), row.get("case", "")

    for (name, case), group in itertools.groupby(rows, of):
        yield f"{name}, {case}".rstrip(", ")
        for row in group:
            contender = f"{row.get('contender', ''):30} {row.get('timing', ''):6}"
            if "fault" in row or "left_out" in row:
                word = "FAULT" if "fault" in row else "left out:"
                reason = (row.get("fault") or row["left_out"]).splitlines()[0]
                yield f"    {contender}  {word} {reason}"
                continue
            if row["kind"] == "held":
                p99 = f", p99 {row['p99_s'] * 1e3:.1f} ms" if "p99_s" in row else ""
                yield f"    {contender} {row['streams']} streams{p99}; {row['more']}"
                continue
            share = f"  {row['bound_share']:6.1%} of the bound ({row['bound_by']})" if "bound_share" in row else ""
            rate = f"  {row['realtime']:8.1f} x real time" if "realtime" in row else ""
            low, high = row["quartiles_s"]
            yield f"    {contender} {row['median_s'] * 1e6:12.1f} us  [{low * 1e6:.1f}, {high * 1e6:.1f}]{share}{rate}"


def _aim_lines(aims: list[dict[str, Any]]) -> Iterator[str]:
    from fastspeech.bench.report import verdict

    for aim in aims:
        yield f"{verdict(aim):32} {aim['aim']}"


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
