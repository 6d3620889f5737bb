"""The interpreter as corrected: bfloat16 as hardware has it, and masked lanes that are undefined."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import json
import torch, triton, triton.language as tl
from fastspeech.kernels import interpreter

interpreter.correct()

@triton.jit
def cast(x, y):
    lane = tl.arange(0, 1024)
    tl.store(y + lane, tl.load(x + lane).to(tl.bfloat16))

@triton.jit
def dot(a, b, c):
    index = tl.arange(0, 16)
    at = index[:, None] * 16 + index[None]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at), input_precision="ieee"))

@triton.jit
def masked(x, y, OTHER: tl.constexpr):
    lane = tl.arange(0, 8)
    if OTHER:
        tl.store(y + lane, tl.load(x + lane, mask=lane < 4, other=0.0))
    else:
        tl.store(y + lane, tl.load(x + lane, mask=lane < 4))

x = torch.cat([torch.randn(1000), torch.tensor([0.0, -0.0, 1e-40, 3.4e38, float("inf"), float("nan")]), torch.ones(18)])
rounded = torch.empty(1024, dtype=torch.bfloat16)
cast[(1,)](x, rounded)
a, b = torch.randn(2, 16, 16).bfloat16()
product = torch.empty(16, 16)
dot[(1,)](a, b, product)
lanes = {"zero": [], "undefined": []}
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for other, found in enumerate((lanes["undefined"], lanes["zero"])):
        y = torch.empty(8, dtype=dtype)
        masked[(1,)](torch.ones(8, dtype=dtype), y, bool(other))
        found.append(str(y.tolist()))
print(json.dumps({
    "cast": torch.equal(rounded.view(torch.int16)[:1005], x.bfloat16().view(torch.int16)[:1005]),
    "nan": rounded[1005].isnan().item(),
    "dot": (product - a.float() @ b.float()).abs().max().item(),
    "lanes": lanes,
}))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    path = tmp_path_factory.mktemp("interpreter") / "program.py"
    path.write_text(PROGRAM)
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    return json.loads(subprocess.check_output([sys.executable, path], env=environment, text=True))


def test_float32_rounds_to_the_nearest_bfloat16(seen):
    assert seen["cast"]
    assert seen["nan"]


def test_bfloat16_matrices_are_multiplied_as_numbers(seen):
    assert seen["dot"] < 1e-5


def test_a_masked_lane_without_other_is_nan(seen):
    assert seen["lanes"]["zero"] == [str([1.0] * 4 + [0.0] * 4)] * 3
    assert seen["lanes"]["undefined"] == [str([1.0] * 4 + [float("nan")] * 4)] * 3
