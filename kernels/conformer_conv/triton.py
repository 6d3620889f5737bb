"""conformer_conv as one pass over memory.

A thread owns two adjacent channels and walks along time. It keeps the last taps - 1 gated values of its channels in
registers (the ring), so that an input is read once, pays for one sigmoid, and serves all the taps that reach it. The
walk goes CHUNK frames at a time, whose loads do not depend on each other and are in flight together:

    ring (taps - 1 gated frames) | CHUNK new gated frames  ->  CHUNK outputs; the last taps - 1 become the ring

A program walks `span` frames of BLOCK_C channels and reads taps - 1 frames more than it writes; those its neighbour
reads too, so they come from the L2 cache and HBM moves 3 values per output (two in, one out). For 9 taps at 32 x 438
frames x 1280 channels in bfloat16 that is 108 MB: 25 us at the 4.3 TB/s an H200 copies at. An output takes about 40
instructions, 4 of them special functions: 25 us of issue slots and 20 us of special-function units on 132 SMs at
1.7 GHz. Memory and instructions are in balance; gating again for each tap would take four times as long.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastspeech.kernels.launch import as_rows, on_device_of

WARPS = 2
CHUNK = 8
# Enough programs to fill a large GPU: 132 SMs with 15 of two warps each.
PROGRAMS = 2048


@triton.jit
def _sigmoid(y):
    # 5 instructions. tl.sigmoid takes 11, since its exp and its quotient rescale for operands that cannot occur here.
    root = tl.rsqrt(1.0 + tl.exp2(y * -1.4426950408889634))
    return root * root


@triton.jit
def _gated(x, row, x_stride, t, length, channel, C: tl.constexpr):
    """The gated values of frame `t`, 0 outside [0, length)."""
    inside = channel < tl.where((t >= 0) & (t < length), C, 0)
    at = x + (row + t) * x_stride + channel
    value = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(at + C, mask=inside, other=0.0).to(tl.float32)
    return value * _sigmoid(gate)


@triton.jit(do_not_specialize=["frames", "span"])
def _conformer_conv(
    x,
    weight,
    bias,
    lengths,
    out,
    frames,
    span,
    x_stride,
    C: tl.constexpr,
    TAPS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    channel = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    spans = tl.cdiv(frames, span)
    b = tl.program_id(0) // blocks // spans
    begin = tl.program_id(0) // blocks % spans * span
    end = tl.minimum(begin + span, frames)
    row = b.to(tl.int64) * frames
    length = frames
    if lengths is not None:
        length = tl.minimum(tl.load(lengths + b), frames).to(tl.int32)

    taps = ()
    for k in tl.static_range(TAPS):
        taps += (tl.load(weight + channel * TAPS + k, mask=channel < C, other=0.0).to(tl.float32),)
    shift = tl.load(bias + channel, mask=channel < C, other=0.0).to(tl.float32)

    ring = ()
    for k in tl.static_range(TAPS - 1):
        ring += (_gated(x, row, x_stride, begin - TAPS // 2 + k, length, channel, C),)
    for t in range(begin, end, CHUNK):
        for r in tl.static_range(CHUNK):
            ring += (_gated(x, row, x_stride, t + r + TAPS // 2, length, channel, C),)
        for r in tl.static_range(CHUNK):
            y = shift
            for k in tl.static_range(TAPS):
                y = tl.fma(taps[k], ring[r + k], y)
            inside = channel < tl.where(t + r < end, C, 0)
            tl.store(out + (row + t + r) * C + channel, y * _sigmoid(y), mask=inside)
        ring = ring[CHUNK:]


def launch(x: Tensor, weight: Tensor, bias: Tensor, lengths: Tensor | None) -> Tensor:
    batch, frames, _ = x.shape
    channels, taps = weight.shape
    rows = as_rows(x)
    out = x.new_empty(batch, frames, channels)
    # Two channels a thread; one where two rings would not fit the registers.
    block = 32 * WARPS * (2 if taps <= 31 else 1)
    blocks = triton.cdiv(channels, block)
    # Long walks waste little on their first ring; short ones fill the GPU when the batch is small.
    span = CHUNK * min(max(triton.cdiv(batch * frames * blocks, PROGRAMS * CHUNK), 1), 8)
    grid = (batch * triton.cdiv(frames, span) * blocks,)
    with on_device_of(x):
        _conformer_conv[grid](
            rows,
            weight.contiguous(),
            bias.contiguous(),
            None if lengths is None else lengths.contiguous(),
            out,
            frames,
            span,
            rows.stride(0),
            C=channels,
            TAPS=taps,
            CHUNK=CHUNK,
            BLOCK_C=block,
            num_warps=WARPS,
        )
    return out
