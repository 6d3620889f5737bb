"""The gradients of conformer_conv as one pass over memory.

With g the gated values, z the convolution's sums (before SiLU) and H = taps // 2,

    dz[t] = dy[t] * silu'(z[t]),  dg[s] = sum_k weight[k] * dz[s + H - k],  dweight[k] = sum_s g[s] * dz[s + H - k].

As in the forward a thread owns two adjacent channels and walks along time; it computes z again. Two rings, of the last
taps - 1 gated values and of the last taps - 1 dz, run ahead of the frame s whose gradient is written:

    g up to s + 2 H  ->  dz up to s + H  ->  dg[s], and one term of each dweight[k]

What a walk adds to the gradients of the filter and the bias stays in registers and leaves as one row a walk, in a fixed
order, without atomics. A walk reads 2 (taps - 1) frames more than it writes, which its neighbours read too: HBM moves 5
values per output (two in and one gradient in, two out), where the reference run again and PyTorch's backward of it move
24.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastspeech.kernels.conformer_conv.triton import PROGRAMS, WARPS, _gated, _sigmoid
from fastspeech.kernels.launch import as_rows, on_device_of

CHUNK = 4


@triton.jit
def _slope(dy, row, dy_stride, t, frames, z, channel, C: tl.constexpr):
    """dz of frame `t` by the convolution's sum there, 0 outside [0, frames)."""
    inside = channel < tl.where((t >= 0) & (t < frames), C, 0)
    grad = tl.load(dy + (row + t) * dy_stride + channel, mask=inside, other=0.0).to(tl.float32)
    sigmoid = _sigmoid(z)
    return grad * sigmoid * (1.0 + z * (1.0 - sigmoid))


@triton.jit
def _convolved(ring, taps, shift, first: tl.constexpr, TAPS: tl.constexpr):
    """The convolution's sum over the TAPS values of a ring from place `first` on."""
    z = shift
    for k in tl.static_range(TAPS):
        z = tl.fma(taps[k], ring[first + k], z)
    return z


@triton.jit(do_not_specialize=["frames", "span"])
def _conformer_conv_backward(
    dy,
    x,
    weight,
    bias,
    lengths,
    dx,
    sums_out,
    frames,
    span,
    dy_stride,
    x_stride,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    half: tl.constexpr = TAPS // 2
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    spans = tl.cdiv(frames, span)
    walk = tl.program_id(0) // blocks
    b = walk // spans
    begin = walk % spans * span
    end = tl.minimum(begin + span, frames)
    row = b.to(tl.int64) * frames
    length = frames
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + b), frames).to(tl.int32)

    taps = ()
    sums = ()
    for k in tl.static_range(TAPS):
        taps += (tl.load(weight + channel * TAPS + k, mask=channel < C, other=0.0).to(tl.float32),)
        sums += (tl.zeros((BLOCK_C,), tl.float32),)
    shift = tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)
    shifts = tl.zeros((BLOCK_C,), tl.float32)

    # The frames from begin - 2 * half on are gated, those from begin - half on have a slope.
    ring = ()
    slopes = ()
    for k in tl.static_range(TAPS - 1):
        ring += (_gated(x, row, x_stride, begin - 2 * half + k, length, channel, C),)
    for k in tl.static_range(TAPS - 1):
        ring += (_gated(x, row, x_stride, begin + k, length, channel, C),)
        z = _convolved(ring, taps, shift, k, TAPS)
        slopes += (_slope(dy, row, dy_stride, begin - half + k, frames, z, channel, C),)
    ring = ring[TAPS - 1 :]
    for s in range(begin, end, CHUNK):
        for r in tl.static_range(CHUNK):
            ring += (_gated(x, row, x_stride, s + r + 2 * half, length, channel, C),)
        for r in tl.static_range(CHUNK):
            z = _convolved(ring, taps, shift, r, TAPS)
            slopes += (_slope(dy, row, dy_stride, s + r + half, frames, z, channel, C),)
        for r in tl.static_range(CHUNK):
            # The last chunk reaches into the next walk, whose terms these are.
            own = s + r < end
            gated = tl.where(own, ring[r], 0.0)
            shifts += tl.where(own, slopes[r + half], 0.0)
            grad = tl.zeros((BLOCK_C,), tl.float32)
            longer = ()
            for k in tl.static_range(TAPS):
                grad = tl.fma(taps[k], slopes[r + TAPS - 1 - k], grad)
                longer += (tl.fma(gated, slopes[r + TAPS - 1 - k], sums[k]),)
            sums = longer
            if dx is not None:
                inside = channel < tl.where(own, C, 0)
                valid = channel < tl.where(own & (s + r < length), C, 0)
                gate = tl.load(x + (row + s + r) * x_stride + channel + C, mask=valid, other=0.0).to(tl.float32)
                sigmoid = _sigmoid(gate)
                at = (row + s + r) * 2 * C + channel
                tl.store(dx + at, tl.where(valid, grad * sigmoid, 0.0), mask=inside)
                tl.store(dx + at + C, grad * gated * (1.0 - sigmoid), mask=inside)
        ring = ring[CHUNK:]
        slopes = slopes[CHUNK:]
    if sums_out is not None:
        at = walk.to(tl.int64) * (TAPS + 1) * C + channel
        for k in tl.static_range(TAPS):
            tl.store(sums_out + at + k * C, sums[k], mask=channel < C)
        tl.store(sums_out + at + TAPS * C, shifts, mask=channel < C)


def launch(
    grads: list[Tensor | None], x: Tensor, weight: Tensor, bias: Tensor, lengths: Tensor | None, needs: list[bool]
) -> list[Tensor]:
    batch, frames, _ = x.shape
    channels, taps = weight.shape
    (dy,) = grads
    assert dy is not None
    slope_rows, rows = as_rows(dy), as_rows(x)
    block = 2 * 32 * WARPS
    blocks = triton.cdiv(channels, block)
    # Longer walks than the forward's, as they overlap by more.
    span = CHUNK * min(max(triton.cdiv(batch * frames * blocks, PROGRAMS * CHUNK), 4), 32)
    walks = batch * triton.cdiv(frames, span)
    dx = x.new_empty(x.shape) if needs[0] else None
    sums = x.new_empty(walks, taps + 1, channels, dtype=torch.float32) if needs[1] or needs[2] else None
    with on_device_of(x):
        _conformer_conv_backward[(walks * blocks,)](
            slope_rows,
            rows,
            weight.contiguous(),
            bias.contiguous(),
            None if lengths is None else lengths.contiguous(),
            dx,
            sums,
            frames,
            span,
            slope_rows.stride(0),
            rows.stride(0),
            C=channels,
            TAPS=taps,
            CHUNK=CHUNK,
            BLOCK_C=block,
            num_warps=WARPS,
        )
    found = [] if dx is None else [dx]
    if sums is not None:
        filters, shifts = sums.sum(0).to(weight.dtype).split([taps, 1])
        # Apart from each other in memory, as the outputs of an op are.
        if needs[1]:
            found.append(filters.T.clone(memory_format=torch.contiguous_format))
        if needs[2]:
            found.append(shifts.flatten().clone())
    return found
