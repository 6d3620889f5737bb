"""The parity suite, run as other projects run it: from an installation of its own, outside the checkout."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from fastspeech.parity import models, units

ROOT = Path(__file__).parents[1]

Run = Callable[..., subprocess.CompletedProcess[str]]

BUGS = {
    # name: (op, the room's file, what stands there, what a hasty hand makes of it)
    "a dropped mask": (
        "conformer_conv",
        "length = tl.minimum(tl.load(lengths + b), frames).to(tl.int32)",
        "length = frames",
    ),
    "a wrong scale": ("residual_layer_norm", "tl.fma(addend, scale, total)", "tl.fma(addend, scale * 1.001, total)"),
    "an off-by-one halo": ("conformer_conv", "begin - TAPS // 2 + k,", "begin - TAPS // 2 + k + 1,"),
    "a stale page": ("paged_attention", "slot // page_size, mask", "tl.maximum(slot - n, 0) // page_size, mask"),
    "a swapped gate": ("conformer_conv", "return value * _sigmoid(gate)", "return gate * _sigmoid(value)"),
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The packages as a wheel lays them out."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fastspeech", tmp_path / "site" / "fastspeech", ignore=ignored)
    shutil.copytree(ROOT / "kernels", tmp_path / "site" / "fastspeech" / "kernels", ignore=ignored)
    return tmp_path / "site"


@pytest.fixture
def run(site: Path, tmp_path: Path) -> Run:
    def run(*command: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
        environment.pop("TRITON_INTERPRET", None)
        return subprocess.run(
            [sys.executable, *command], env=environment, cwd=tmp_path, capture_output=True, text=True
        )

    return run


def test_the_installed_suite_passes_and_reports(run: Run, site: Path, tmp_path: Path) -> None:
    where = run("-c", "import fastspeech.kernels; print(fastspeech.kernels.__file__)")
    assert Path(where.stdout.strip()).is_relative_to(site)
    done = run("-m", "fastspeech", "parity", "--device", "cpu", "--op", "residual_layer_norm", "--model", "moonshine",
               "--json", "--junit", "reports/parity.xml", "--seed", "5")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(done.stdout)["results"]
    assert {(r["name"], r["served_by"]) for r in results} >= {
        ("residual_layer_norm", "reference"),
        ("residual_layer_norm", "triton"),
        ("moonshine", "model"),
    }
    kernels = [r for r in results if r["served_by"] == "triton"]
    assert {r["dtype"] for r in kernels} == {"float32", "bfloat16", "float16"}
    assert all(r["allowed"] > 0 and 0 <= r["error"] <= r["allowed"] and r["checks"] > 5 for r in kernels)
    suite = ElementTree.parse(tmp_path / "reports" / "parity.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == (str(len(results)), "0")


@pytest.mark.parametrize(
    "bug", [pytest.param(bug, marks=[] if bug == "a wrong scale" else pytest.mark.slow) for bug in BUGS]
)
def test_a_seeded_bug_is_caught_and_repeated_by_the_script_it_prints(
    bug: str, run: Run, site: Path, tmp_path: Path
) -> None:
    op, right, wrong = BUGS[bug]
    source = site / "fastspeech" / "kernels" / op / "triton.py"
    assert source.read_text().count(right) == 1
    source.write_text(source.read_text().replace(right, wrong))
    done = run("-m", "fastspeech", "parity", "--device", "cpu", "--backend", "triton", "--op", op,
               "--json", "--junit", "parity.xml")  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    faults = [fault for result in json.loads(done.stdout)["results"] for fault in result["faults"]]
    assert ElementTree.parse(tmp_path / "parity.xml").getroot().findall("testcase/failure")
    script = next(fault["script"] for fault in faults if fault["script"])
    (tmp_path / "repeat.py").write_text(script)
    repeated = run("repeat.py")
    assert repeated.returncode == 1 and "AssertionError" in repeated.stderr, script + repeated.stderr
    source.write_text(source.read_text().replace(wrong, right))
    assert run("repeat.py").returncode == 0, script


def test_a_kernel_that_crashes_costs_its_own_results(run: Run, site: Path) -> None:
    source = site / "fastspeech" / "kernels" / "cmvn" / "triton.py"
    source.write_text("import os\n\nos.abort()\n")
    done = run("-m", "fastspeech", "parity", "--device", "cpu", "--op", "cmvn", "--op", "residual_layer_norm")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert any(line.startswith("FAIL cmvn") for line in lines) and "the process ended with status -6" in done.stdout
    assert all(line.startswith("ok") for line in lines if "residual_layer_norm " in line)


def test_pytest_runs_it_from_the_package(run: Run) -> None:
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "fastspeech.parity",
               "-k", "reference and cmvn or moonshine")  # fmt: skip
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", models.EXAMPLES)
def test_a_model_that_computes_something_else_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoiled(model: Any) -> Any:
        copied = copy.deepcopy(model)
        last = [parameter for key, parameter in copied.named_parameters() if "layers.1" in key and parameter.dim() > 1]
        last[0].data.mul_(1.01)
        return copied

    assert models.check(name).ok
    monkeypatch.setattr(models, "copy", SimpleNamespace(deepcopy=spoiled))
    assert any("float64" in fault.check for fault in models.check(name).faults)


def test_a_gpu_would_not_convolve_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = []

    def noted(model: Any) -> Any:
        allowed.append(torch.backends.cudnn.allow_tf32)
        return copy.deepcopy(model)

    monkeypatch.setattr(models, "copy", SimpleNamespace(deepcopy=noted))
    assert models.check("moonshine").ok and allowed[0] is False


def test_names_that_there_are_not_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no fft"):
        units(op_names=["fft"])
    with pytest.raises(ValueError, match="there is no whisper"):
        units(model_names=["whisper"])
    assert {unit.name for unit in units(model_names=["moonshine"])} == {"moonshine"}
