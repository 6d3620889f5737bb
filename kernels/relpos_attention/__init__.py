"""relpos_attention: Transformer-XL attention whose position scores never reach memory."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspeech.kernels import checks
from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op
from fastspeech.kernels.relpos_attention.reference import relpos_attention as _reference


def _fake(
    q: Tensor, k: Tensor, v: Tensor, r: Tensor, bias_u: Tensor, bias_v: Tensor, lengths: Tensor | None, scale: float
) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _triton_limits(
    q: Tensor, k: Tensor, v: Tensor, r: Tensor, bias_u: Tensor, bias_v: Tensor, lengths: Tensor | None, scale: float
) -> str | None:
    if q.element_size() > 4:
        return "float64 is served by the reference"
    if q.shape[3] > 256:
        return f"head dim {q.shape[3]}, at most 256 fit a tile"
    return None


def _backward_limits(
    q: Tensor, k: Tensor, v: Tensor, r: Tensor, bias_u: Tensor, bias_v: Tensor, lengths: Tensor | None, scale: float
) -> str | None:
    if q.shape[3] > 160:
        return f"head dim {q.shape[3]}, q and the output's gradient of at most 160 stay in registers side by side"
    return None


_op = Op(
    _reference,
    _fake,
    (
        Implementation(
            "triton",
            "fastspeech.kernels.relpos_attention.triton",
            _triton_limits,
            backward="fastspeech.kernels.relpos_attention.triton_backward",
            backward_limits=_backward_limits,
        ),
    ),
)


def relpos_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    r: Tensor,
    bias_u: Tensor,
    bias_v: Tensor,
    lengths: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Self-attention with relative positions (Dai et al. 2019, section 3.3), as in a Conformer encoder.

    score[i, j] = scale * ((q[i] + bias_u) . k[j] + (q[i] + bias_v) . r[frames - 1 - i + j]) for keys j < lengths[b];
    the output is softmax over j of the score times v. Row m of r is the projected encoding of the relative position
    i - j = frames - 1 - m.

    Args:
        q, k, v: (batch, frames, heads, head_dim), any strides (slices of one packed projection are fine).
        r: (2 * frames - 1, heads, head_dim), positions frames - 1 down to 1 - frames.
        bias_u, bias_v: (heads, head_dim), the content and position biases.
        lengths: (batch,) int32 or int64, valid keys of each row; None where all are valid.
        scale: factor of the scores, head_dim ** -0.5 where None.

    Returns:
        (batch, frames, heads, head_dim), contiguous, in q's dtype; a row of length 0 gives 0. What queries
        behind another row's length give is not specified, but finite.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.
    """
    checks.rank("q", q, 4, "(batch, frames, heads, head_dim)")
    batch, frames, heads, head_dim = q.shape
    checks.shape("k", k, (batch, frames, heads, head_dim), "q's shape")
    checks.shape("v", v, (batch, frames, heads, head_dim), "q's shape")
    checks.shape("r", r, (2 * frames - 1, heads, head_dim), "(2 * frames - 1, heads, head_dim)")
    checks.shape("bias_u", bias_u, (heads, head_dim), "(heads, head_dim)")
    checks.shape("bias_v", bias_v, (heads, head_dim), "(heads, head_dim)")
    checks.floating(q=q, k=k, v=v, r=r, bias_u=bias_u, bias_v=bias_v)
    checks.lengths(lengths, batch, q.device)
    return _op(q, k, v, r, bias_u, bias_v, lengths, head_dim**-0.5 if scale is None else scale)
