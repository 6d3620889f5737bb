"""The results of a parity run for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from xml.etree import ElementTree

from fastspeech.parity.result import Result


def line(result: Result) -> str:
    """One line: verdict, what, error measured and allowed, and below it every fault with what repeats it."""
    verdict = "ok" if result.ok else "FAIL"
    what = f"{result.name:22} {result.served_by:10} {result.dtype:9}"
    lines = [
        f"{verdict:4} {what} {result.checks:4} checks  error {result.error:8.2e} of {result.allowed:8.2e}"
        f"  {result.seconds:6.1f} s"
    ]
    for fault in result.faults:
        lines += [f"     {fault.check}: {fault.message.rstrip()}"]
        lines += [f"     | {text}" for text in fault.script.splitlines()]
    return "\n".join(lines)


def to_json(results: Sequence[Result], skipped: Sequence[tuple[str, str]]) -> str:
    """{"results": [...], "skipped": [{"name", "why"}]}."""
    rows = [{**asdict(result), "ok": result.ok} for result in results]
    return json.dumps({"results": rows, "skipped": [{"name": name, "why": why} for name, why in skipped]}, indent=2)


def write_junit(results: Sequence[Result], skipped: Sequence[tuple[str, str]], path: Path) -> None:
    """JUnit XML, one test case for each line of the report."""
    suite = ElementTree.Element(
        "testsuite",
        name="fastspeech.parity",
        tests=str(len(results) + len(skipped)),
        failures=str(sum(not result.ok for result in results)),
        skipped=str(len(skipped)),
        time=f"{sum(result.seconds for result in results):.3f}",
    )
    for result in results:
        name = "-".join(filter(None, (result.name, result.served_by, result.dtype)))
        case = ElementTree.SubElement(
            suite, "testcase", classname="fastspeech.parity", name=name, time=f"{result.seconds:.3f}"
        )
        for fault in result.faults:
            failure = ElementTree.SubElement(case, "failure", message=f"{fault.check}: {fault.message[:200]}")
            failure.text = _printable(f"{fault.message}\n{fault.script}")
    for name, why in skipped:
        case = ElementTree.SubElement(suite, "testcase", classname="fastspeech.parity", name=name)
        ElementTree.SubElement(case, "skipped", message=why)
    path.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def _printable(text: str) -> str:
    """The text without the control characters that XML cannot hold."""
    return "".join(c for c in text if c in "\n\t" or c >= " ")
