"""tiled_linear: a linear map whose weights lie in the order in which a decoding step on the CPU reads them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastspeech.kernels import checks
from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op
from fastspeech.kernels.tiled_linear.reference import tiled_linear as _reference

TILE = 32
"""Outputs whose weights lie side by side: two registers of AVX-512, four of AVX2."""


def _fake(x: Tensor, tiles: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


def _cuda_limits(x: Tensor, tiles: Tensor, bias: Tensor | None, outputs: int) -> str | None:
    return None if x.element_size() == 4 else f"float32 only, these are {x.dtype}"


_op = Op(
    _reference,
    _fake,
    (Implementation("cuda", "fastspeech.kernels.tiled_linear.cuda", _cuda_limits, on_cpu=True, on_cuda=False),),
)


def in_tiles(weight: Tensor) -> Tensor:
    """A weight (outputs, in) as tiled_linear takes it, (tiles, in, 32), the last tile filled up with zeros."""
    return F.pad(weight, (0, 0, 0, -len(weight) % TILE)).unflatten(0, (-1, TILE)).transpose(1, 2).contiguous()


def tiled_linear(x: Tensor, tiles: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    """x weight' + bias, of a weight that `in_tiles` has laid out.

    A step of decoding reads every weight for a few rows; in tiles the weights stream by once, in the order in which
    they lie, while the sums of up to eight rows stay in registers.

    Args:
        x: (..., in) floating.
        tiles: (tiles, in, 32), tiles = outputs / 32, rounded up; what the last has beyond the outputs has no effect.
        bias: (outputs,), or None.

    Returns:
        (..., outputs), contiguous.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.
    """
    checks.rank("tiles", tiles, 3, "(tiles, in, 32)")
    checks.shape("tiles", tiles, (-(-outputs // TILE), x.shape[-1], TILE), "(outputs / 32 rounded up, in, 32)")
    if bias is None:
        checks.floating(x=x, tiles=tiles)
    else:
        checks.floating(x=x, tiles=tiles, bias=bias)
        checks.shape("bias", bias, (outputs,), "(outputs,)")
    return _op(x, tiles, bias, outputs)
