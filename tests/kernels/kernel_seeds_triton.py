"""A Triton op that is easy to break: each fault is one that ahead-of-time compilation must find."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op
from fastspeech.kernels.spec import Case, Cost, OpSpec


def seeded_double(x: Tensor) -> Tensor:
    """Twice x (rows, columns)."""
    return x * 2


@triton.jit(do_not_specialize=["rows"])
def _double(x, y, rows, columns: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0) * 4 + tl.arange(0, 4)[:, None]
    column = tl.arange(0, BLOCK)[None]
    mask = (row < rows) & (column < columns)
    values = tl.load(x + row * columns + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + row * columns + column, values * 2, mask=mask)


@triton.jit
def _double_by_length(x, y, rows: tl.constexpr, columns: tl.constexpr, BLOCK: tl.constexpr):
    _double(x, y, rows, columns, BLOCK)


@triton.jit
def _many_values(x, y, BLOCK: tl.constexpr):
    lane = tl.arange(0, BLOCK)
    values = tl.load(x + lane)
    order = tl.sort(values)
    tl.store(y + lane, order + values)


def launch(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    rows, columns = x.shape
    _double[(triton.cdiv(rows, 4),)](x, y, rows, columns, triton.next_power_of_2(columns), num_warps=1)
    return y


right = launch


def length_is_constant(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    rows, columns = x.shape
    _double_by_length[(triton.cdiv(rows, 4),)](x, y, rows, columns, triton.next_power_of_2(columns), num_warps=1)
    return y


def too_few_registers(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    _many_values[(1,)](x, y, 512, num_warps=1, maxnreg=24)
    return y


def grid_too_high(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    _double[(1, 70000)](x, y, *x.shape, triton.next_power_of_2(x.shape[1]), num_warps=1)
    return y


def wrong_dtype(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32)


def reads_values(x: Tensor) -> Tensor:
    y = torch.empty_like(x)
    _double[(int(x.max()),)](x, y, *x.shape, triton.next_power_of_2(x.shape[1]), num_warps=1)
    return y


_op = Op(
    seeded_double, lambda x: torch.empty_like(x), (Implementation("triton", "kernel_seeds_triton", lambda x: None),)
)

SPEC = OpSpec(
    name="seeded_double",
    summary="twice x",
    call=lambda x: _op(x),
    inputs=lambda dtype, generator, rows, columns: {"x": torch.randn(rows, columns, generator=generator).to(dtype)},
    cases=(Case("only", "model", {"rows": 37, "columns": 48}),),
    cost=lambda itemsize, rows, columns: Cost(2 * itemsize * rows * columns, rows * columns),
    vary=lambda shape, rows, length: {**shape, "rows": shape["rows"] + rows + length},
)
