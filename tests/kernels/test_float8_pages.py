"""Pages of float8_e4m3fn: the conversions against all numbers there are, and what rounding costs."""

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from fastspeech.kernels import page_append, page_fork, paged_attention, use_backend
from fastspeech.kernels.extension import BUILT
from fastspeech.kernels.page_append.spec import SPEC
from fastspeech.kernels.tolerance import EXACT, judge

STORED = torch.float8_e4m3fn
CODES = torch.arange(256).to(torch.uint8)
NUMBERS = CODES.view(STORED).float()
backends = pytest.mark.parametrize(
    "backend",
    ["reference", pytest.param("cuda", marks=pytest.mark.skipif(not BUILT, reason="the extension is not built"))],
)

IN_TRITON = """
import sys
import torch, triton, triton.language as tl
from fastspeech.kernels import page_fork, use_backend
from fastspeech.kernels.float8 import narrowed, widened

@triton.jit
def widen(code, number, N: tl.constexpr):
    lane = tl.arange(0, N)
    tl.store(number + lane, widened(tl.load(code + lane)))

@triton.jit
def narrow(number, code, N: tl.constexpr):
    lane = tl.arange(0, N)
    tl.store(code + lane, narrowed(tl.load(number + lane)))

codes, values = torch.load(sys.argv[1])
numbers, narrow_codes = torch.empty(256), torch.empty(len(values), dtype=torch.uint8)
widen[(1,)](codes, numbers, 256)
narrow[(1,)](values, narrow_codes, len(values))
pages = codes.view(torch.float8_e4m3fn).view(4, 2, 4, 8).clone()
with use_backend("triton"):
    page_fork(pages, pages.clone(), torch.tensor([2, -1]), torch.tensor([0, 1]))
torch.save((numbers, narrow_codes, pages), sys.argv[2])
"""


def hard_values() -> Tensor:
    """All numbers, what lies halfway between two and beside that, what is beyond the largest, and others."""
    ordered = NUMBERS[NUMBERS.isfinite()].unique()
    halfway = (ordered[1:] + ordered[:-1]) / 2
    beside = (halfway.nextafter(torch.tensor(s)) for s in (torch.inf, -torch.inf))
    rest = torch.tensor([448.1, 464.0, -500.0, 1e30, torch.inf, -torch.inf, torch.nan, 1e-40, -1e-40, 0.0, -0.0])
    random = torch.randn(8192, generator=torch.Generator().manual_seed(0)) * 10.0 ** (torch.arange(8192) % 8 - 5)
    return torch.cat([ordered, halfway, *beside, rest, random])


def nearest(x: Tensor) -> Tensor:
    """By the definition: of all numbers the nearest, of two the one whose code is even."""
    size = x.abs().double().clamp(max=448.0)
    distance = (NUMBERS[:127].double() - size[:, None]).abs()
    least = distance.min(1, keepdim=True).values
    best = torch.where(distance == least, CODES[:127].double() + 1000 * (CODES[:127] % 2), torch.inf).argmin(1)
    return torch.where(x.isnan(), torch.nan, NUMBERS[best].copysign(x))


def same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a.nan_to_num(nan=1000.0), b.nan_to_num(nan=1000.0))


def test_conversions_in_triton(tmp_path):
    values = hard_values()
    padded = torch.cat([values, torch.zeros(16384 - len(values))])
    (tmp_path / "program.py").write_text(IN_TRITON)
    torch.save((CODES, padded), tmp_path / "given")
    command = [sys.executable, tmp_path / "program.py", tmp_path / "given", tmp_path / "made"]
    subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, check=True)
    numbers, codes, forked = torch.load(tmp_path / "made")
    assert same(numbers, NUMBERS)
    assert same(codes.view(STORED).float()[: len(values)], nearest(values))
    assert torch.equal(forked.view(torch.uint8), as_forked(CODES.view(4, 2, 4, 8)))


def as_forked(codes: Tensor) -> Tensor:
    """With page 2 in page 0's place."""
    return torch.cat([codes[2:3], codes[1:]])


@backends
def test_bytes_are_forked(backend):
    pages = CODES.view(STORED).view(4, 2, 4, 8).clone()
    others = pages.transpose(2, 3).contiguous().transpose(2, 3)
    with use_backend(backend):
        page_fork(pages, others, torch.tensor([2, -1]), torch.tensor([0, 1]))
    for side in (pages, others):
        assert torch.equal(side.view(torch.uint8), as_forked(CODES.view(4, 2, 4, 8)))


@backends
def test_what_is_appended_is_the_nearest_number(backend):
    values = hard_values()
    values = values.view(1, 1, 1, -1)
    pages = torch.zeros(2, 1, 1, 2, values.shape[-1]).to(STORED)
    with use_backend(backend):
        page_append(values, -values, *pages, None, torch.tensor([1]))
    for side, wanted in zip(pages, (values, -values), strict=True):
        assert same(side[0, 0, 1].float(), nearest(wanted.flatten()))
        assert not side[0, 0, 0].float().any()


@backends
def test_all_numbers_are_read(backend):
    """A query that sees one key gets its value."""
    finite = NUMBERS.isfinite()
    pages = CODES.view(STORED)[finite].view(1, 1, 1, -1)
    q = torch.ones(1, 1, 1, pages.shape[-1])
    scale = torch.tensor([3.0])
    with use_backend(backend):
        out = paged_attention(q, torch.zeros_like(pages), pages, None, torch.tensor([0]), value_scales=scale)
    assert torch.equal(out.flatten(), 3.0 * NUMBERS[finite])


@backends
def test_scales_are_by_head(backend):
    """Powers of two change the exponents alone: what is stored over them and read by them is the same."""
    generator = torch.Generator().manual_seed(0)
    q, keys, values = torch.randn(3, 2, 3, 2, 8, generator=generator).clamp(0.5, 3.0)
    scales = torch.tensor([0.25, 4.0]), torch.tensor([8.0, 0.5])
    positions = torch.tensor([0, 4])
    found = []
    for key_scales, value_scales in ((None, None), scales):
        pages = torch.zeros(2, 2, 2, 8, 8).to(STORED)
        with use_backend(backend):
            page_append(keys, values, *pages, None, positions, key_scales=key_scales, value_scales=value_scales)
            out = paged_attention(q, *pages, None, positions, key_scales=key_scales, value_scales=value_scales)
        found.append((pages.float(), out))
    (plain, out), (scaled, out_scaled) = found
    assert torch.equal(scaled, plain / torch.stack(scales)[:, None, :, None, None])
    torch.testing.assert_close(out_scaled, out, atol=1e-6, rtol=1e-6)


def test_the_error_of_rounding():
    """Normal keys and values lose at most a 16th each and, drawn at random, two percent; attention about as much."""
    generator = torch.Generator().manual_seed(0)
    q, keys, values = torch.randn(3, 4, 96, 2, 64, generator=generator)
    positions = torch.zeros(4, dtype=torch.int64)
    rounded, plain = torch.zeros(2, 4, 2, 96, 64).to(STORED), torch.zeros(2, 4, 2, 96, 64)
    outs = []
    for pages in (rounded, plain):
        page_append(keys, values, *pages, None, positions)
        outs.append(paged_attention(q, *pages, None, positions))
    error = (rounded.float() - plain).abs()
    normal = plain.abs() >= 2.0**-6
    assert (error[normal] / plain.abs()[normal]).max() <= 2.0**-4
    assert 0.015 < error.norm() / plain.norm() < 0.035
    assert (outs[0] - outs[1]).norm() / outs[1].norm() < 0.05


def test_the_judge_sees_a_number_that_is_not_the_nearest():
    """Eight bits have an ulp of an eighth, behind which every wrong rounding would hide."""
    oracle = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 100
    right = oracle.clamp(-448, 448).to(STORED)
    wrong = right.view(torch.uint8).clone()
    wrong[7] ^= 1
    assert judge(right, right, oracle).ok
    assert judge(right, right, oracle, EXACT).ok
    assert not judge(wrong.view(STORED), right, oracle).ok


def test_the_record_has_numbers_of_all_sizes():
    case = next(case for case in SPEC.cases if case.name == "pages of 8 bits")
    inputs = SPEC.inputs(torch.float32, torch.Generator().manual_seed(0), **case.shape)
    stored = (inputs["values"] / inputs["value_scales"][:, None]).abs()
    assert (stored > 448).any()
    assert ((stored > 2.0**-9) & (stored < 2.0**-6)).any()


@pytest.mark.parametrize(
    ("change", "kind", "fault"),
    [
        ({"key_scales": torch.ones(3)}, ValueError, "key_scales must be"),
        ({"value_scales": torch.ones(2, dtype=torch.int32)}, TypeError, "value_scales must be float32"),
        (
            {"key_pages": torch.zeros(3, 2, 4, 8).half(), "value_pages": torch.zeros(3, 2, 4, 8).half()},
            ValueError,
            "pages",
        ),
    ],
)
def test_what_is_refused(change, kind, fault):
    pages = torch.zeros(3, 2, 4, 8).to(STORED)
    rows = {"key_pages": pages, "value_pages": pages.clone(), "table": None, "positions": torch.zeros(3).long()}
    with pytest.raises(kind, match=fault):
        paged_attention(**{"q": torch.zeros(3, 1, 2, 8), **rows} | change)
    with pytest.raises(kind, match=fault):
        page_append(**{"keys": torch.zeros(3, 1, 2, 8), "values": torch.zeros(3, 1, 2, 8), **rows} | change)
