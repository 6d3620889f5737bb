"""Pages that lie more than 2^31 elements behind the first: a pool of a GPU has such."""

import os
import subprocess
import sys

PROGRAM = """
import torch
from fastspeech.kernels import page_append, page_fork, paged_attention, use_backend

torch.manual_seed(0)
# Memory that is not touched is not taken. Heads of an odd size have strides of units of one element.
count = 2**31 // (16 * 63) + 8
pages = [torch.empty(count, 1, 16, 63, dtype=torch.float8_e4m3fn) for _ in range(2)]
last = count - 1
for side in pages:
    for page in (0, 1, last - 1, last):
        side[page] = torch.randn(1, 16, 63).to(side.dtype)
table = torch.tensor([[0, last], [last - 1, 1]], dtype=torch.int32)
positions = torch.tensor([17, 19])
q, k, v = torch.randn(3, 2, 1, 1, 63)
made = {}
for backend in ("triton", "reference"):
    with use_backend(backend):
        page_append(k, v, *pages, table, positions)
        # Between the two that are far, and from near to far.
        page_fork(*pages, torch.tensor([last]), torch.tensor([2]))
        page_fork(*pages, torch.tensor([0]), torch.tensor([last - 2]))
        out = paged_attention(q, *pages, table, positions)
        near = [side[[0, 1, 2, last - 2, last - 1, last]].float() for side in pages]
        made[backend] = (out, *near)
    for side in pages:
        side[[2, last - 2]] = torch.zeros(2, 1, 16, 63).to(side.dtype)
for mine, wanted in zip(made["triton"], made["reference"], strict=True):
    torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)
assert made["reference"][1][2].any()
"""


def test_offsets_are_of_64_bits(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, tmp_path / "program.py"]
    done = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
