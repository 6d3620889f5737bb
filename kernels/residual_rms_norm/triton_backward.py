"""The gradients of residual_rms_norm as one pass over memory.

With y = total / rms, the gradient of total by way of the norm is, per row (Zhang and Sennrich 2019),

    (weight * dnormed - y * mean(y * weight * dnormed)) / rms,

to which that of the sum itself is added; x and delta share it. A program computes the sum and its norm again from x
and delta, for row tiles PROGRAMS apart, and keeps what its rows add to the gradient of weight in registers: it leaves
as one row a program, in a fixed order, without atomics. That moves 6 values an element, where the reference run again
and PyTorch's backward of it, half of it in float32, move 80.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastspeech.kernels.launch import as_rows, on_device_of

TILE = 2048
# Four programs of four warps on each of 132 SMs.
PROGRAMS = 528


@triton.jit(do_not_specialize=["count"])
def _residual_rms_norm_backward(
    x,
    delta,
    weight,
    dtotal,
    dnormed,
    dx,
    ddelta,
    dweight,
    count,
    x_stride,
    delta_stride,
    dtotal_stride,
    dnormed_stride,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    column = tl.arange(0, BLOCK_C)[None, :]
    gain = tl.load(weight + column, mask=column < C, other=0.0).to(tl.float32)
    weights = tl.zeros((ROWS, BLOCK_C), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(count, ROWS), tl.num_programs(0)):
        row = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)[:, None]
        inside = (row < count) & (column < C)
        at = row * C + column
        grad = tl.zeros((ROWS, BLOCK_C), tl.float32)
        if dnormed is not None:
            total = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
            if delta is not None:
                total += tl.load(delta + row * delta_stride + column, mask=inside, other=0.0).to(tl.float32)
            rate = 1.0 / tl.sqrt_rn(tl.sum(total * total, axis=1, keep_dims=True) / C + eps)
            y = total * rate
            slope = tl.load(dnormed + row * dnormed_stride + column, mask=inside, other=0.0).to(tl.float32)
            weights += slope * y
            slope *= gain
            grad = (slope - y * (tl.sum(slope * y, axis=1, keep_dims=True) / C)) * rate
        if dtotal is not None:
            grad += tl.load(dtotal + row * dtotal_stride + column, mask=inside, other=0.0).to(tl.float32)
        if dx is not None:
            tl.store(dx + at, grad, mask=inside)
        if ddelta is not None:
            tl.store(ddelta + at, grad, mask=inside)
    if dweight is not None:
        at = tl.program_id(0) * C + column
        tl.store(dweight + at, tl.sum(weights, axis=0, keep_dims=True), mask=column < C)


def launch(
    grads: list[Tensor | None], x: Tensor, delta: Tensor | None, weight: Tensor, eps: float, needs: list[bool]
) -> list[Tensor]:
    channels = x.shape[-1]
    x_rows = as_rows(x)
    delta_rows, dtotal, dnormed = (None if t is None else as_rows(t) for t in (delta, *grads))
    count = x_rows.shape[0]
    block = triton.next_power_of_2(channels)
    rows = max(TILE // block, 1)
    programs = min(triton.cdiv(count, rows), PROGRAMS)
    dx, ddelta = (torch.empty_like(x, memory_format=torch.contiguous_format) if need else None for need in needs[:2])
    dweight = weight.new_empty(programs, channels, dtype=torch.float32) if needs[2] else None
    with on_device_of(x):
        _residual_rms_norm_backward[(programs,)](
            x_rows,
            delta_rows,
            weight.contiguous(),
            dtotal,
            dnormed,
            dx,
            ddelta,
            dweight,
            count,
            x_rows.stride(0),
            0 if delta_rows is None else delta_rows.stride(0),
            0 if dtotal is None else dtotal.stride(0),
            0 if dnormed is None else dnormed.stride(0),
            eps,
            C=channels,
            ROWS=rows,
            BLOCK_C=block,
            num_warps=min(max(rows * block // 512, 4), 8),
        )
    gains = None if dweight is None else dweight.sum(0).to(weight.dtype)
    return [grad for grad in (dx, ddelta, gains) if grad is not None]
