"""tiled_linear by the extension, which serves CPU tensors only: csrc/tiled_linear.cpp."""

from __future__ import annotations

import torch
from torch import Tensor

_tiled_linear = torch.ops.fastspeech_csrc.tiled_linear.default


def launch(x: Tensor, tiles: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    return dense(tiles.contiguous(), None if bias is None else bias.contiguous(), outputs, x)


def dense(tiles: Tensor, bias: Tensor | None, outputs: int, x: Tensor) -> Tensor:
    """`launch` for tiles and a bias that are contiguous, which a decoding step need not ask at each of its products."""
    out = x.new_empty((*x.shape[:-1], outputs))
    _tiled_linear(x.contiguous(), tiles, bias, out)
    return out
