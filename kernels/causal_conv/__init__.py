"""causal_conv: ELU, a causal convolution that continues from its state, and a residual sum, in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspeech.kernels import checks
from fastspeech.kernels.causal_conv.reference import causal_conv as _reference
from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op


def _fake(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: int, elu: bool
) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape[0], x.shape[1] // stride, weight.shape[0])
    return y, torch.empty_like(state, memory_format=torch.contiguous_format)


def _triton_limits(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: int, elu: bool
) -> str | None:
    if x.element_size() > 4:
        return "float64 is served by the reference"
    if x.shape[1] * x.shape[2] >= 1 << 31:
        return f"{x.shape[1]} frames of {x.shape[2]} channels are more than 32 bits count"
    return None


def _cuda_limits(x: Tensor, *rest: object) -> str | None:
    return "float64 is served by the reference" if x.element_size() > 4 else None


_op = Op(
    _reference,
    _fake,
    (
        Implementation("triton", "fastspeech.kernels.causal_conv.triton", _triton_limits),
        Implementation("cuda", "fastspeech.kernels.causal_conv.cuda", _cuda_limits, on_cuda=False),
    ),
)


def causal_conv(
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    stride: int = 1,
    elu: bool = False,
) -> tuple[Tensor, Tensor]:
    """One convolution of a streaming SEANet (Tagliasacchi et al. 2020; Zeghidour et al., SoundStream, 2021).

    With seen = state, then f(x), along time, where f is ELU (alpha 1) or nothing, and taps = past + stride,

        y[b, t, n] = residual[b, t, n] + bias[n] + sum_{k, c} weight[n, k * channels + c] * seen[b, t * stride + k, c]

    and the new state is the end of `seen`. A stream begins with a state of zeros, and then any way of cutting it into
    multiples of `stride` gives the frames of the whole.

    Args:
        x: (batch, frames, channels), frames a positive multiple of stride.
        state: (batch, past, channels), what came before x: the last `past` frames, behind f.
        weight: (outputs, taps * channels), a filter of `torch.nn.Conv1d`, (outputs, channels, taps), with its last two
            axes exchanged and joined.
        bias: (outputs,) or None.
        residual: (batch, frames / stride, outputs) or None.
        stride: frames from one output to the next.
        elu: whether f is ELU.

    Returns:
        y (batch, frames / stride, outputs) and the new state, in x's dtype.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.
    """
    checks.rank("x", x, 3, "(batch, frames, channels)")
    checks.rank("state", state, 3, "(batch, past, channels)")
    checks.rank("weight", weight, 2, "(outputs, taps * channels)")
    batch, frames, channels = x.shape
    if stride < 1 or frames < 1 or frames % stride:
        raise ValueError(f"x has {frames} frames, which is no positive multiple of the stride {stride}")
    past, outputs = state.shape[1], weight.shape[0]
    checks.shape("state", state, (batch, past, channels), "(batch, past, channels)")
    checks.shape("weight", weight, (outputs, (past + stride) * channels), "(outputs, (past + stride) * channels)")
    if bias is not None:
        checks.shape("bias", bias, (outputs,), "(outputs,)")
    if residual is not None:
        checks.shape("residual", residual, (batch, frames // stride, outputs), "(batch, frames / stride, outputs)")
    checks.floating(x=x, state=state, weight=weight, bias=bias, residual=residual)
    return _op(x, state, weight, bias, residual, stride, elu)
