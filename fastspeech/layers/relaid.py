"""Weights of linear maps a second time, as a CPU multiplies few rows by them fastest."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastspeech.kernels.onednn import through_onednn
from fastspeech.layers.derived import Derived, Kept
from fastspeech.layers.linear import direct

Map = Callable[[Tensor], Tensor]
Product = Callable[..., Map]
"""Makes the function from x (..., in) to the outputs of the linear maps it is called with, concatenated."""

_TILE = 32
"""Outputs whose weights lie side by side in the layout for one row: two registers of AVX-512, four of AVX2."""


class Relaid(Kept):
    """Copies of float32 weights for products on the CPU, at the price of their memory.

    A decoding step reads every weight for a row or a few, so what counts is how fast they are read. Where a Zen 4 core
    reads memory at 23 GB/s, products with matrices as parameters lie, (out, in), reach 9 GB/s with one row and 5 with
    five. For one row, tiles of (in, 32) reach 20 to 24: the sums stay in registers while a tile streams by. For several
    rows, oneDNN's blocks reach 17 to 20, which it would otherwise make anew at every call.
    """

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        self._kept: dict[tuple[int, ...], Derived] = {}

    def product(self, rows: int) -> Product:
        """What makes functions that are fast for about `rows` rows and right for any number. Without gradients."""
        return partial(self._function, rows == 1)

    def _function(self, one_row: bool, *maps: nn.Linear) -> Map:
        if any(type(linear) is not nn.Linear for linear in maps):
            parts = [direct(linear) for linear in maps]
            return parts[0] if len(parts) == 1 else lambda x: torch.cat([part(x) for part in parts], dim=-1)
        kept = self._kept.setdefault((one_row, *map(id, maps)), Derived())
        parameters = [p for linear in maps for p in (linear.weight, linear.bias) if p is not None]
        weight, bias = kept.get(parameters, partial(_lay_out, one_row, maps))
        leaving = sum(linear.out_features for linear in maps)
        return partial(_tiled, weight, bias, leaving) if one_row else partial(_blocked, weight, bias)


def blocked(weight: Tensor, bias: Tensor | None = None) -> Map:
    """The function from x (..., in) to x weight' + bias by a copy of weight (out, in), in oneDNN's blocks where that
    serves it. Without gradients."""
    if not through_onednn(weight):
        return partial(F.linear, weight=weight, bias=bias)
    return partial(_blocked, torch.ops.mkldnn._reorder_linear_weight(weight.detach()), bias)


def _lay_out(one_row: bool, maps: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    weight = torch.cat([linear.weight.detach() for linear in maps])
    biases = [linear.bias.detach() for linear in maps if linear.bias is not None]
    bias = torch.cat(biases) if biases else None
    if not one_row:
        return torch.ops.mkldnn._reorder_linear_weight(weight), bias
    missing = -len(weight) % _TILE
    tiles = F.pad(weight, (0, 0, 0, missing)).unflatten(0, (-1, _TILE)).transpose(1, 2).contiguous()
    return tiles, None if bias is None else F.pad(bias, (0, missing)).view(-1, 1, _TILE)


def _tiled(tiles: Tensor, bias: Tensor | None, leaving: int, x: Tensor) -> Tensor:
    count, entering, width = tiles.shape
    rows = x.reshape(1, -1, entering).expand(count, -1, -1)
    product = torch.bmm(rows, tiles) if bias is None else torch.baddbmm(bias, rows, tiles)
    # One row's tiles lie in order.
    product = product if x.numel() == entering else product.transpose(0, 1)
    product = product.reshape(*x.shape[:-1], -1)
    return product if count * width == leaving else product[..., :leaving]


def _blocked(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
