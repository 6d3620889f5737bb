"""What importing the library costs, and what it leaves alone."""

import subprocess
import sys

import pytest

COUNTED = """
import torch, sys
before = set(sys.modules)
import {name}
print(torch.cuda.is_initialized(), *sorted({{module.split(".")[0] for module in set(sys.modules) - before}}))
"""


@pytest.mark.parametrize("name", ["fastspeech", "fastspeech.kernels"])
def test_import_is_lean(name):
    """Beside torch and what torch imports there is only the library itself."""
    found = subprocess.check_output([sys.executable, "-c", COUNTED.format(name=name)], text=True).split()
    assert found == ["False", "fastspeech"]
