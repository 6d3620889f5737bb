"""The gradients of relpos_attention where p and ds of all heads have no room at once."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import importlib

import torch

from fastspeech.kernels import interpreter
from fastspeech.kernels.spec import Case, load_spec
from fastspeech.kernels.verify import CHECKS, Subject

interpreter.correct()
module = importlib.import_module("fastspeech.kernels.relpos_attention.triton_backward")
spec = load_spec("relpos_attention")
case = Case("groups", "odd", {"batch": 2, "frames": 35, "heads": 3, "dim": 5, "lengths": (35, 19)})
for heads in (1, 2):
    module.WORKSPACE = heads * 2 * 35 * 64 * 4
    CHECKS["gradients"](Subject(spec, case, torch.float32, "triton"))
"""


@pytest.mark.slow
def test_groups_of_heads_add_up():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
