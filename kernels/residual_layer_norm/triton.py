"""residual_layer_norm as one pass over memory.

A program holds at least TILE values, whole rows of them, in registers: it reads x and delta and writes the sum and its
normalised form, 4 values an element where the two operators apart move 5 and launch twice. The norm is that of
the float32 sum, not of its rounded copy. Mean and variance come from the registers by the corrected two-pass algorithm
(Chan, Golub and LeVeque, The American Statistician 37, 1983): the variance from centred values, and what these still
sum to, which the rounding of a large mean leaves behind, taken off both.

For 32 x 438 rows of 1280 in bfloat16 that is 143 MB: 33 us at the 4.3 TB/s an H200 copies at. Each thread has two
vectors of 16 bytes of either input in flight.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastspeech.kernels.launch import as_rows, on_device_of

TILE = 2048


@triton.jit(do_not_specialize=["count"])
def _residual_layer_norm(
    x,
    delta,
    weight,
    bias,
    total_out,
    normed_out,
    count,
    x_stride,
    delta_stride,
    scale,
    eps,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.arange(0, BLOCK_C)[None, :]
    inside = (row < count) & (column < C)
    total = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    addend = tl.load(delta + row * delta_stride + column, mask=inside, other=0.0).to(tl.float32)
    total = tl.fma(addend, scale, total)
    at = row * C + column
    tl.store(total_out + at, total, mask=inside)

    mean = tl.sum(total, axis=1, keep_dims=True) / C
    centred = tl.where(inside, total - mean, 0.0)
    missed = tl.sum(centred, axis=1, keep_dims=True) / C
    variance = tl.sum(centred * centred, axis=1, keep_dims=True) / C - missed * missed
    normed = (centred - missed) * (1.0 / tl.sqrt_rn(tl.maximum(variance, 0.0) + eps))
    normed *= tl.load(weight + column, mask=column < C, other=0.0).to(tl.float32)
    if bias is not None:
        normed += tl.load(bias + column, mask=column < C, other=0.0).to(tl.float32)
    tl.store(normed_out + at, normed, mask=inside)


def launch(
    x: Tensor, delta: Tensor, weight: Tensor, bias: Tensor | None, scale: float, eps: float
) -> tuple[Tensor, Tensor]:
    channels = x.shape[-1]
    total = torch.empty_like(x, memory_format=torch.contiguous_format)
    normed = torch.empty_like(total)
    x_rows, delta_rows = as_rows(x), as_rows(delta)
    block = triton.next_power_of_2(channels)
    rows = max(TILE // block, 1)
    with on_device_of(x):
        _residual_layer_norm[(triton.cdiv(x_rows.shape[0], rows),)](
            x_rows,
            delta_rows,
            weight.contiguous(),
            None if bias is None else bias.contiguous(),
            total,
            normed,
            x_rows.shape[0],
            x_rows.stride(0),
            delta_rows.stride(0),
            scale,
            eps,
            C=channels,
            ROWS=rows,
            BLOCK_C=block,
            # 16 values a thread, 32 in the longest rows.
            num_warps=min(rows * block // 512, 16),
        )
    return total, normed
