"""conformer_conv: GLU, padding mask, depthwise convolution with folded BatchNorm, SiLU, in one pass."""

from __future__ import annotations

from torch import Tensor

from fastspeech.kernels import checks
from fastspeech.kernels.conformer_conv.reference import conformer_conv as _reference
from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op


def _fake(x: Tensor, weight: Tensor, bias: Tensor, lengths: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], weight.shape[0])


def _triton_limits(x: Tensor, weight: Tensor, bias: Tensor, lengths: Tensor | None) -> str | None:
    if x.element_size() > 4:
        return "float64 is served by the reference"
    if weight.shape[1] > 64:
        return f"{weight.shape[1]} taps, at most 64 are kept in registers"
    return None


def _cuda_limits(x: Tensor, *rest: object) -> str | None:
    return "float64 is served by the reference" if x.element_size() > 4 else None


def _backward_limits(x: Tensor, weight: Tensor, bias: Tensor, lengths: Tensor | None) -> str | None:
    if weight.shape[1] > 15:
        return f"{weight.shape[1]} taps, a kernel for the gradients of more than 15 takes minutes to compile"
    return None


_op = Op(
    _reference,
    _fake,
    (
        Implementation(
            "triton",
            "fastspeech.kernels.conformer_conv.triton",
            _triton_limits,
            backward="fastspeech.kernels.conformer_conv.triton_backward",
            backward_limits=_backward_limits,
        ),
        Implementation("cuda", "fastspeech.kernels.conformer_conv.cuda", _cuda_limits, on_cpu=True, on_cuda=False),
    ),
)


def conformer_conv(x: Tensor, weight: Tensor, bias: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The middle of a Conformer convolution module (Gulati et al. 2020, section 2.2).

    With g = x[..., :C] * sigmoid(x[..., C:]), zero at t >= lengths[b], the result is
    silu(bias[c] + sum_k weight[c, k] * g[b, t + k - K // 2, c]).

    Args:
        x: (batch, frames, 2 * channels), output of the first pointwise convolution.
        weight: (channels, taps), the depthwise filter times gamma / sqrt(running_var + eps); taps is odd.
        bias: (channels,), the depthwise bias put through the same BatchNorm.
        lengths: (batch,) int32 or int64, valid frames of each row; None where all are valid.

    Returns:
        (batch, frames, channels), contiguous, in x's dtype. Frames at or behind a row's length are computed from the
        valid frames within reach and the bias, and are finite.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.
    """
    checks.rank("x", x, 3, "(batch, frames, 2 * channels)")
    checks.rank("weight", weight, 2, "(channels, taps)")
    channels, taps = weight.shape
    if x.shape[2] != 2 * channels:
        raise ValueError(f"x has {x.shape[2]} features, weight {channels} channels: twice as many are needed")
    if taps % 2 == 0:
        raise ValueError(f"weight has {taps} taps; a centred filter has an odd number")
    checks.shape("bias", bias, (channels,), "(channels,)")
    checks.floating(x=x, weight=weight, bias=bias)
    checks.lengths(lengths, x.shape[0], x.device)
    return _op(x, weight, bias, lengths)
