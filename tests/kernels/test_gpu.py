"""The kernels on a GPU, from the same records: `pytest -m gpu`."""

import pytest
import torch

from fastspeech.kernels import OPS
from fastspeech.kernels.dispatch import device_refusal
from fastspeech.kernels.spec import all_specs
from fastspeech.kernels.verify import CHECKS, plan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

PLANNED = [
    pytest.param(check, subject, id=f"{check}-{subject}-{implementation.name}")
    for spec in all_specs()
    for implementation in OPS[spec.name].implementations
    for check, subject in plan(spec, implementation.name, "cuda")
]


@pytest.mark.parametrize(("check", "subject"), PLANNED)
def test_kernel_holds(check, subject):
    refusal = device_refusal(subject.backend, torch.device("cuda", 0))
    assert refusal is None, refusal
    CHECKS[check](subject)
