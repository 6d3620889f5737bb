"""doctor: what it says is what the dispatcher does."""

import dataclasses
import json
from itertools import product
from typing import Any

import pytest
import torch

from fastspeech import doctor
from fastspeech.cli import main
from fastspeech.kernels import OPS, BackendError, extension, use_backend
from fastspeech.kernels.spec import OpSpec, all_specs, load_spec

# Not OPS itself: other tests of the run define ops of their own.
SHIPPED = [spec.name for spec in all_specs()]
ON_CPU = "Triton kernels need CUDA tensors, these are on cpu"


def served_on_cpu(name: str) -> str:
    return "cuda" if OPS[name].on_cpu else "reference"


@pytest.fixture
def spec() -> OpSpec:
    return load_spec("embed_sum")


def test_every_op_on_every_device() -> None:
    findings = doctor.examine()
    devices = [device["name"] for device in findings["devices"]]
    assert devices[0] == "cpu" and len(devices) == 1 + torch.cuda.device_count()
    assert {(row["op"], row["device"]) for row in findings["ops"]} == set(product(SHIPPED, devices))
    assert doctor.healthy(findings)
    assert findings["versions"]["torch"] and findings["versions"]["fastspeech"]
    for row in findings["ops"]:
        if row["device"] == "cpu":
            assert row["served_by"] == served_on_cpu(row["op"])
            kernels = {implementation.name for implementation in OPS[row["op"]].implementations}
            assert set(row["others"]) == (kernels | {"reference"}) - {row["served_by"]}
            assert row["others"].get("triton", ON_CPU) == ON_CPU
            if "cuda" in row["others"]:
                assert row["others"]["cuda"] == (extension.refusal("cpu") or "could, but is not asked")


def test_a_named_backend_that_cannot_serve(spec: OpSpec) -> None:
    with use_backend("triton"):
        row = doctor._examine_op(spec, torch.device("cpu"))
    assert row["served_by"] is None and row["error"] is None
    assert row["others"] == {"triton": ON_CPU, "reference": "could, but is not asked"}
    assert not doctor.healthy({"ops": [row]})


def test_a_kernel_that_fails_is_what_a_model_would_meet(spec: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` takes the first implementation that does not refuse, and knows of no failure beforehand."""

    def call(**inputs: Any) -> None:
        if asked[-1] == "triton":
            raise RuntimeError("ptxas died")

    asked: list[str] = []

    def use(name: str) -> Any:
        asked.append(name)
        return use_backend(name)

    monkeypatch.setattr(doctor, "use_backend", use)
    monkeypatch.setattr(doctor.dispatch, "candidates", lambda op, device: op.implementations)
    row = doctor._examine_op(dataclasses.replace(spec, call=call), torch.device("cpu"))
    assert row["served_by"] is None and row["error"] == "triton fails: ptxas died"
    assert row["others"] == {"reference": "could, but another goes first"}
    assert asked == ["triton", "reference"]


def test_a_cpu_call_goes_to_the_reference_whatever_could_serve_it(spec: OpSpec) -> None:
    """As under TRITON_INTERPRET=1, where Triton kernels run on CPU tensors."""
    row = doctor._examine_op(dataclasses.replace(spec, call=lambda **inputs: None), torch.device("cpu"))
    assert row["served_by"] == "reference" and row["others"] == {"triton": "could, but is not asked"}


def test_what_refuses_is_passed_over(spec: OpSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.dispatch, "candidates", lambda op, device: op.implementations)
    row = doctor._examine_op(spec, torch.device("cpu"))
    assert row["served_by"] == "reference" and row["others"] == {"triton": ON_CPU}
    with pytest.raises(BackendError), use_backend("triton"):
        spec.call(**spec.inputs(torch.float32, torch.Generator(), **spec.cases[0].shape))


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"versions", "devices", "backend", "extension", "ops"}
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for name in SHIPPED:
        assert any(line.split()[:3] == [name, "cpu", served_on_cpu(name)] for line in text.splitlines())
    assert "FASTSPEECH_BACKEND=auto" in text
    with use_backend("triton"):
        assert main(["doctor"]) == 1
    assert "nothing" in capsys.readouterr().out
