"""The benchmarks: right before fast, every sample kept, a slow-down told from noise."""

import json
import random
import time
from pathlib import Path

import pytest
import torch

from fastspeech.bench import cli, compare, kernels, record, timing
from fastspeech.bench.report import exponents
from fastspeech.cli import main
from fastspeech.kernels.spec import load_spec

CPU = torch.device("cpu")
CEILINGS = {"copy_bytes_per_s": 1e10, "flops_per_s": {"float32": 1e11}}


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A record of one op."""
    monkeypatch.setattr("fastspeech.bench.ceilings.measure", lambda device: CEILINGS)
    path = tmp_path / "results" / "here" / "one.json"
    arguments = ["bench", "kernels", "--device", "cpu", "--only", "cmvn", "--budget", "0.02", "--output", str(path)]
    assert main(arguments) == 0
    return path


def test_a_record_holds_what_a_reader_needs(measured: Path) -> None:
    found = json.loads(measured.read_text())
    assert found["versions"]["torch"] == torch.__version__ and found["device"]["cores"] and "commit" in found
    cases = [case.name for case in load_spec("cmvn").cases if case.kind == "model"]
    assert [row["case"] for row in found["rows"] if row["contender"] == "reference"] == cases
    for row in found["rows"]:
        low, high = row["quartiles_s"]
        assert len(row["samples_s"]) >= 5 and low <= row["median_s"] <= high
        assert row["bound_share"] == pytest.approx(row["bound_s"] / row["median_s"])


def test_what_is_there_is_not_measured_again(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = measured.read_text()
    arguments = ["kernels", "--device", "cpu", "--only", "cmvn", "--budget", "0.02", "--output", str(measured)]
    assert cli.main([*arguments, "--resume"]) == 0
    assert measured.read_text() == before


def test_the_report_has_tables_and_plots(measured: Path) -> None:
    pytest.importorskip("matplotlib")
    results = measured.parents[1]
    assert cli.main(["report", "--results", str(results)]) == 0
    page = (results / "README.md").read_text()
    assert "| cmvn | " in page and "](here/roofline.svg)" in page
    assert (results / "here" / "roofline.svg").read_text().count("<path") > 5


def test_a_wrong_contender_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_spec("residual_layer_norm")
    case = next(case for case in spec.cases if case.kind == "ordinary")

    def wrong(inputs: dict) -> timing.Function:
        return lambda: tuple(1.001 * output for output in spec.run(inputs))

    monkeypatch.setitem(kernels.PEERS, spec.name, {"wrong": wrong})
    rows = list(kernels.measure(spec, case, torch.float32, CPU, CEILINGS, False, 0.01))
    assert ["fault" in row for row in rows if row["contender"] == "wrong"] == [True]
    assert all("samples_s" not in row for row in rows if row["contender"] == "wrong")
    assert any("samples_s" in row for row in rows if row["contender"] == "reference")


def test_functions_are_timed_in_turn() -> None:
    order: list[str] = []
    functions = {name: lambda name=name: (order.append(name), time.sleep(0.001)) for name in "ab"}
    taken = timing.interleaved(functions, CPU, 0)
    assert all(0.001 <= times.median < 0.1 and len(times.samples) == 5 for times in taken.values())
    assert order[-10:] == list("ab" * 5)


def test_a_seeded_slow_down_is_told_from_noise(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(measured.read_text())
    chance = random.Random(0)
    noisy, slow = (json.loads(measured.read_text()) for _ in range(2))
    for number, row in enumerate(found["rows"]):
        row["samples_s"] = [1e-3 * chance.gauss(1, 0.03) for _ in range(50)]
        noisy["rows"][number]["samples_s"] = [1e-3 * chance.gauss(1, 0.03) for _ in range(50)]
        factor = 1.12 if number == 0 else 1.0
        slow["rows"][number]["samples_s"] = [factor * 1e-3 * chance.gauss(1, 0.03) for _ in range(50)]
    paths = [measured.with_name(name) for name in ("before.json", "noisy.json", "slow.json")]
    for path, content in zip(paths, (found, noisy, slow), strict=True):
        record.save(content, path)
    assert main(["bench", "--compare", str(paths[0]), str(paths[1])]) == 0
    capsys.readouterr()
    assert main(["bench", "--compare", str(paths[0]), str(paths[2])]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("slower")]) == 1 and "cmvn" in lines[0]


def test_an_interval_covers_the_true_ratio() -> None:
    chance = random.Random(1)
    hits = 0
    for _ in range(40):
        first, second = ([scale * chance.gauss(1, 0.1) for _ in range(30)] for scale in (1.0, 1.2))
        found = compare.change((), first, second)
        hits += found.low <= 1.2 <= found.high
    assert hits >= 34


def test_exponents_are_those_of_the_points() -> None:
    rows = [
        {"name": "m", "part": "whole", "contender": "us", "batch": 1, "seconds": s, "median_s": 0.1 * s**1.5}
        for s in (5, 10, 30)
    ]
    assert next(exponents(rows))[3] == pytest.approx(1.5)


def test_without_a_task_the_command_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench"])
    assert "kernels, models, gpu or report" in capsys.readouterr().err
