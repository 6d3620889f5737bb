"""`pytest --pyargs fastspeech.parity`: the suite as tests, on the GPU where there is one.

FASTSPEECH_PARITY_DEVICE and FASTSPEECH_PARITY_SEED name another device and another seed.
"""

import os

import pytest
import torch

from fastspeech.parity import units
from fastspeech.parity.report import line

DEVICE = os.environ.get("FASTSPEECH_PARITY_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
SEED = int(os.environ.get("FASTSPEECH_PARITY_SEED", "0"))


@pytest.mark.parametrize("unit", units(DEVICE, seed=SEED), ids=lambda unit: unit.name.replace(" ", "-"))
def test_parity(unit):
    if unit.refusal is not None:
        pytest.skip(unit.refusal)
    failed = [result for result in unit.check() if not result.ok]
    assert not failed, "\n" + "\n".join(line(result) for result in failed)
