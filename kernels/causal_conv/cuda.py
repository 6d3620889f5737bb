"""causal_conv by the extension, which serves CPU tensors only: csrc/causal_conv.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspeech.kernels.tiled_linear import in_tiles


def launch(
    x: Tensor, state: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, stride: int, elu: bool
) -> tuple[Tensor, Tensor]:
    bias, residual = (None if t is None else t.float().contiguous() for t in (bias, residual))
    tiles = in_tiles(weight.float())
    y, last = by_tiles(tiles, len(weight), bias, residual, stride, elu, x.float(), state.float())
    return y.to(x.dtype), last.to(x.dtype)


def by_tiles(
    tiles: Tensor,
    outputs: int,
    bias: Tensor | None,
    residual: Tensor | None,
    stride: int,
    elu: bool,
    x: Tensor,
    state: Tensor,
) -> tuple[Tensor, Tensor]:
    """causal_conv in float32 of a weight that `tiled_linear.in_tiles` has laid out, which takes as long as a
    convolution for one stream; bias and residual contiguous."""
    y, last = x.new_empty(x.shape[0], x.shape[1] // stride, outputs), x.new_empty(state.shape)
    torch.ops.fastspeech_csrc.causal_conv(
        x.contiguous(), state.contiguous(), tiles, bias, residual, stride, elu, y, last
    )
    return y, last
