"""What importing the library costs, and what it leaves alone."""

import subprocess
import sys

import pytest

TIMED = """
import torch, sys, time
began = time.perf_counter()
import {name}
seconds = time.perf_counter() - began
print(seconds, torch.cuda.is_initialized(), *({forbidden} & {{m.split(".")[0] for m in sys.modules}}))
"""
FORBIDDEN = {"triton", "transformers", "av", "tokenizers", "safetensors", "huggingface_hub"}


@pytest.mark.parametrize("name", ["fastspeech", "fastspeech.kernels"])
def test_import_is_lean(name):
    code = TIMED.format(name=name, forbidden=FORBIDDEN)
    runs = [subprocess.check_output([sys.executable, "-c", code], text=True).split() for _ in range(3)]
    assert all(run[1:] == ["False"] for run in runs), runs
    # The fastest of three, since the machine may be busy.
    assert min(float(run[0]) for run in runs) < 0.3
