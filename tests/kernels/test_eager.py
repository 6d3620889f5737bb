"""What the CPU computes in memory that it overwrites, against what the references say."""

import pytest
import torch
from torch import Tensor

from fastspeech.kernels.op import OPS
from fastspeech.kernels.spec import load_spec
from fastspeech.kernels.tolerance import judge

CASES = [
    pytest.param(load_spec(op), case, id=f"{op}-{case.name}".replace(" ", "_"))
    for op in ("cmvn", "log_mel")
    for case in load_spec(op).cases
    if case.kind != "model"
]


@pytest.mark.parametrize(("spec", "case"), CASES)
def test_the_eager_path_errs_no_more_than_the_plain_one(spec, case):
    inputs = spec.inputs(torch.float32, torch.Generator().manual_seed(3), **case.shape)
    if "window" in inputs:
        inputs["window"] += 0.1  # Hann's hides the first tap.
    first, reference = next(iter(inputs)), OPS[spec.name].reference
    wide = {n: v.double() for n, v in inputs.items() if isinstance(v, Tensor) and v.is_floating_point()}
    oracle = reference(**inputs | wide)
    plain = reference(**inputs | {first: inputs[first].clone().requires_grad_()})
    assert plain.requires_grad
    found = reference(**inputs)
    verdict = judge(found, plain.detach(), oracle)
    assert verdict.ok, verdict


@pytest.mark.parametrize(("spec", "case"), CASES)
def test_the_eager_path_leaves_its_inputs_as_they_are(spec, case):
    inputs = spec.inputs(torch.float32, torch.Generator().manual_seed(4), **case.shape)
    before = {name: value.clone() for name, value in inputs.items() if isinstance(value, Tensor)}
    OPS[spec.name].reference(**inputs)
    assert all(torch.equal(inputs[name], value) for name, value in before.items())
