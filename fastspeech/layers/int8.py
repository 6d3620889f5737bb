"""Linear maps by weights of eight bits, through PyTorch's own products, for decoding on the CPU.

A weight is an integer of -127 .. 127 times the scale of its output. `_weight_int8pack_mm` takes rows in bfloat16 and is
as fast as weights are read, which makes it the choice for a few rows. For more, oneDNN multiplies by instructions for
integers (VNNI), for which rows become eight bits too, each by a scale of its own, and the sums are exact: what is
beside a row changes no bit of it.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Map = Callable[[Tensor], Tensor]
Layout = Callable[[Tensor, Tensor | None], Map]

FEW_ROWS = 4
_WHOLE = 32
"""A multiple of the inputs that `_weight_int8pack_mm` reads at once; where they end before, it reads on behind them."""
_LARGEST = 127


def check(weight: Tensor) -> None:
    """Raise ValueError where a decoder with such weights cannot be decoded in eight bits."""
    if weight.device.type != "cpu":
        raise ValueError(f"decoding with int8 weights is for models on the CPU, this one is on {weight.device}")


def layout(rows: int) -> Layout | None:
    """How to lay out weights (out, in) for products with so many rows; None where float32 is faster, which for many
    rows it is on processors without VNNI."""
    if rows <= FEW_ROWS:
        return _by_weights
    return _by_integers if torch.backends.mkldnn.is_available() and torch.cpu._is_vnni_supported() else None


def quantised(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Integers (out, in) int8 and the scales (out,) in a dtype whose products are nearest to weight (out, in)."""
    weight = weight.float()
    scales = (weight.abs().amax(1) / _LARGEST).clamp(min=torch.finfo(dtype).tiny).to(dtype)
    return (weight / scales.float()[:, None]).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scales


def _by_weights(weight: Tensor, bias: Tensor | None) -> Map:
    missing = -weight.shape[1] % _WHOLE
    return partial(_rows_by_weights, *quantised(F.pad(weight, (0, missing)), torch.bfloat16), bias, missing)


def _by_integers(weight: Tensor, bias: Tensor | None) -> Map:
    integers, scales = quantised(weight, torch.float32)
    blocks = torch.ops.onednn.qlinear_prepack(integers, None)
    return partial(_rows_by_integers, blocks, scales, torch.zeros(len(scales), dtype=torch.int32), bias)


def _rows_by_weights(integers: Tensor, scales: Tensor, bias: Tensor | None, missing: int, x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    rows = F.pad(rows, (0, missing)) if missing else rows
    product = torch.ops.aten._weight_int8pack_mm(rows.bfloat16().contiguous(), integers, scales).to(x.dtype)
    product = product.view(*x.shape[:-1], -1)
    return product if bias is None else product.add_(bias)


def _rows_by_integers(blocks: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    rows = x.float()
    steps = torch.linalg.vector_norm(rows, torch.inf, -1, keepdim=True).mul_(1 / _LARGEST)
    steps = steps.clamp_(min=torch.finfo(torch.float32).tiny)
    # Of positive numbers the cast cuts off what is behind the point; 128 stands for 0.
    integers = rows.div(steps).add_(128.5).to(torch.uint8)
    product = torch.ops.onednn.qlinear_pointwise(
        integers, 1.0, 128, blocks, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    product = product.mul_(steps).to(x.dtype)
    return product if bias is None else product.add_(bias)
