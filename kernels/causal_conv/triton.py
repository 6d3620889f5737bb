"""causal_conv as one matrix product that makes its operand as it reads.

With time before channels, what output t of a row sees is one piece of memory, taps * channels values from
t * stride * channels on, of the row's state and then its x. So the convolution is a product of overlapping pieces with
the filters: a program makes BLOCK_M outputs of BLOCK_N filters, reads each value from where it lies, state or x, and
puts ELU on what comes from x. Neither the joined input nor the pieces are ever written; ELU is computed anew for
each of the taps / stride pieces that hold a value and each block of filters, which against BLOCK_N multiplications a
value is little. The last programs write the new state.

Float32 is multiplied as float32 (codes change with TF32), bfloat16 and float16 on tensor cores. For a frame of 64
streams, Mimi's 15 convolutions are 20.9 GFLOP: 0.35 ms at the 60 TFLOP/s that an H200 has in float32. A frame of one
stream is bound by the 50 MB of filters: 12 us at 4.3 TB/s.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastspeech.kernels.launch import on_device_of

BLOCK_STATE = 1024


@triton.jit
def _elu(x):
    return tl.where(x > 0, x, tl.exp2(x * 1.4426950408889634) - 1.0)


@triton.jit(do_not_specialize=["outputs", "frames", "windows", "state_stride"])
def _causal_conv(
    x,
    state,
    weight,
    bias,
    residual,
    y,
    last,
    outputs,
    frames,
    windows,
    state_stride,
    C: tl.constexpr,
    N: tl.constexpr,
    WIDTH: tl.constexpr,
    PAST: tl.constexpr,
    STEP: tl.constexpr,
    ELU: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_STATE: tl.constexpr,
):
    blocks: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tiles = tl.cdiv(outputs, BLOCK_M) * blocks
    program = tl.program_id(0)
    if program < tiles:
        m = program // blocks * BLOCK_M + tl.arange(0, BLOCK_M)
        n = program % blocks * BLOCK_N + tl.arange(0, BLOCK_N)
        row = (m // windows).to(tl.int64)
        start = m % windows * STEP
        from_x = x + row * frames * C + start - PAST
        from_state = state + row * state_stride + start
        # Of the piece of an output, how much lies in the state; of no output, nothing lies anywhere.
        old = tl.where(m < outputs, PAST - start, WIDTH)
        end = tl.where(m < outputs, PAST - start, 0)
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for begin in range(0, WIDTH, BLOCK_K):
            k = begin + tl.arange(0, BLOCK_K)
            recent = (k[None, :] >= old[:, None]) & (k < WIDTH)[None, :]
            value = tl.load(from_x[:, None] + k[None, :], mask=recent, other=0.0).to(tl.float32)
            if ELU:
                value = _elu(value)
            before = (k[None, :] < end[:, None]) & (k < WIDTH)[None, :]
            value += tl.load(from_state[:, None] + k[None, :], mask=before, other=0.0).to(tl.float32)
            inside = (n < N)[None, :] & (k < WIDTH)[:, None]
            taps = tl.load(weight + n[None, :] * WIDTH + k[:, None], mask=inside, other=0.0)
            total = tl.dot(value.to(taps.dtype), taps, total, input_precision="ieee")
        if bias is not None:
            total += tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
        place = m.to(tl.int64)[:, None] * N + n[None, :]
        wanted = (m < outputs)[:, None] & (n < N)[None, :]
        if residual is not None:
            total += tl.load(residual + place, mask=wanted, other=0.0).to(tl.float32)
        tl.store(y + place, total, mask=wanted)
    elif PAST > 0:
        pieces: tl.constexpr = (PAST + BLOCK_STATE - 1) // BLOCK_STATE
        stream = ((program - tiles) // pieces).to(tl.int64)
        i = (program - tiles) % pieces * BLOCK_STATE + tl.arange(0, BLOCK_STATE)
        # Where it lies in state and x together, counted from the beginning of x.
        at = frames * C - PAST + i
        kept = tl.load(x + stream * frames * C + at, mask=(i < PAST) & (at >= 0), other=0.0).to(tl.float32)
        if ELU:
            kept = _elu(kept)
        older = state + stream * state_stride + at + PAST
        kept += tl.load(older, mask=(i < PAST) & (at < 0), other=0.0).to(tl.float32)
        tl.store(last + stream * PAST + i, kept, mask=i < PAST)


def launch(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: int, elu: bool
) -> tuple[Tensor, Tensor]:
    batch, frames, channels = x.shape
    filters, width = weight.shape
    windows = frames // stride
    past = state.shape[1] * channels
    y = x.new_empty(batch, windows, filters)
    last = x.new_empty(state.shape)
    # Layers of large filters have few outputs, and small tiles then make enough programs.
    block_m, block_n, block_k = (64, 32, 16) if filters * width < 1 << 18 else (16, 32, 64)
    block_n = min(block_n, max(16, triton.next_power_of_2(filters)))
    old = state.flatten(1)
    old = old if old.stride(1) == 1 else old.contiguous()
    tiles = triton.cdiv(batch * windows, block_m) * triton.cdiv(filters, block_n)
    with on_device_of(x):
        _causal_conv[(tiles + batch * triton.cdiv(past, BLOCK_STATE),)](
            x.contiguous(),
            old,
            weight.contiguous(),
            None if bias is None else bias.contiguous(),
            None if residual is None else residual.contiguous(),
            y,
            last,
            batch * windows,
            frames,
            windows,
            old.stride(0),
            C=channels,
            N=filters,
            WIDTH=width,
            PAST=past,
            STEP=stride * channels,
            ELU=elu,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=min(block_k, max(16, triton.next_power_of_2(width))),
            BLOCK_STATE=BLOCK_STATE,
            num_warps=4,
        )
    return y, last
