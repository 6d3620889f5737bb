"""Linear maps by weights of eight bits, through PyTorch's own product, for decoding."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

Map = Callable[[Tensor], Tensor]
Layout = Callable[[Tensor, Tensor | None], Map]
"""Lays out a weight (out, in) and its bias, and makes the function of the copy."""

_WHOLE = 32
"""A multiple of the inputs that PyTorch's product on the CPU reads at once; where they end before, it reads on behind
them."""
_LARGEST = 127


def check(weight: Tensor) -> None:
    """Raise ValueError where a decoder with such weights cannot be decoded in eight bits."""
    kind = weight.device.type
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"int8 weights are for models on the CPU or a CUDA device, this one is on {weight.device}")
    if not torch._C._dispatch_has_kernel_for_dispatch_key("aten::_weight_int8pack_mm", kind.upper()):
        raise ValueError(f"PyTorch {torch.__version__} has no product with int8 weights for {kind} tensors")


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers (out, in) int8 of -127 .. 127 and scales (out,) bfloat16 whose products are nearest to the weight."""
    weight = weight.float()
    scales = (weight.abs().amax(1) / _LARGEST).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
    return (weight / scales.float()[:, None]).round().clamp(-_LARGEST, _LARGEST).to(torch.int8), scales


def in_int8(weight: Tensor, bias: Tensor | None) -> Map:
    """The layout of weights of eight bits, for the device that they are on."""
    return in_float32(weight, bias) if weight.is_cuda else in_bfloat16(weight, bias)


def in_bfloat16(weight: Tensor, bias: Tensor | None) -> Map:
    """For the CPU: rows become bfloat16, each result is rounded to it once."""
    missing = -weight.shape[1] % _WHOLE
    return partial(_product, *quantised(F.pad(weight, (0, missing))), bias, missing)


def in_float32(weight: Tensor, bias: Tensor | None) -> Map:
    """For a GPU, where PyTorch multiplies and sums in float32, whatever the rows are."""
    integers, scales = quantised(weight)
    return partial(_product, integers, scales.float(), bias, 0)


def _product(integers: Tensor, scales: Tensor, bias: Tensor | None, missing: int, x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    rows = F.pad(rows, (0, missing)) if missing else rows
    product = torch.ops.aten._weight_int8pack_mm(rows.to(scales.dtype).contiguous(), integers, scales).to(x.dtype)
    product = product.view(*x.shape[:-1], -1)
    return product if bias is None else product.add_(bias)
