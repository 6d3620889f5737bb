"""Weights of linear maps a second time, as a CPU multiplies few rows by them fastest."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastspeech.kernels import dispatch, extension
from fastspeech.kernels.onednn import through_onednn
from fastspeech.kernels.tiled_linear import TILE, in_tiles
from fastspeech.layers.derived import Derived, Kept
from fastspeech.layers.int8 import Layout, Map
from fastspeech.layers.linear import direct

Product = Callable[..., Map]
"""Makes the function from x (..., in) to the outputs of the linear maps it is called with, concatenated."""


class Relaid(Kept):
    """Copies of float32 weights for products on the CPU, at the price of their memory.

    A decoding step reads every weight for a row or a few, so what counts is how fast they are read. Where a Zen 4 core
    reads memory at 23 GB/s, products with matrices as parameters lie, (out, in), reach 9 GB/s with one row and 5 with
    five. In the tiles of `tiled_linear` they stream by nearly as fast as memory is read for up to eight rows, and many
    rows are multiplied as fast as in oneDNN's blocks. Without the extension one row reaches that too; several take
    those blocks, at 13 GB/s, which oneDNN would otherwise make anew at every call.
    """

    def __init__(self) -> None:
        self.drop()

    def drop(self) -> None:
        self._kept: dict[tuple[object, ...], Derived] = {}

    def product(self, rows: int) -> Product:
        """What makes functions that are fast for about `rows` rows and right for any number. Without gradients."""
        return self.by(_layout(rows == 1))

    def by(self, layout: Layout) -> Product:
        """What makes the functions of weights laid out in this way."""
        return partial(self._function, layout)

    def _function(self, layout: Layout, *maps: nn.Linear) -> Map:
        if any(type(linear) is not nn.Linear for linear in maps):
            parts = [direct(linear) for linear in maps]
            return parts[0] if len(parts) == 1 else lambda x: torch.cat([part(x) for part in parts], dim=-1)
        kept = self._kept.setdefault((layout, *map(id, maps)), Derived())
        parameters = [p for linear in maps for p in (linear.weight, linear.bias) if p is not None]
        return kept.get(parameters, partial(_together, layout, maps))


def blocked(weight: Tensor, bias: Tensor | None = None) -> Map:
    """The function from x (..., in) to x weight' + bias by a copy of weight (out, in), laid out for several rows where
    that serves it. Without gradients."""
    if not through_onednn(weight):
        return partial(F.linear, weight=weight, bias=bias)
    return _layout(False)(weight.detach(), bias)


def streams_tiles() -> bool:
    """Whether the extension is there, and wanted, to multiply by weights in tiles."""
    return dispatch.backend() in ("auto", "cuda") and extension.refusal("cpu") is None


def _layout(one_row: bool) -> Layout:
    """How to lay a weight (out, in) and its bias out: what makes the function of the copy."""
    if streams_tiles():
        return _streamed
    return _in_one_row if one_row else _in_blocks


def _together(layout: Layout, maps: Sequence[nn.Linear]) -> Map:
    biases = [linear.bias.detach() for linear in maps if linear.bias is not None]
    return layout(torch.cat([linear.weight.detach() for linear in maps]), torch.cat(biases) if biases else None)


def _streamed(weight: Tensor, bias: Tensor | None) -> Map:
    # Past the op of PyTorch, whose call costs more than a small product.
    from fastspeech.kernels.tiled_linear.cuda import dense

    return partial(dense, in_tiles(weight), None if bias is None else bias.contiguous(), len(weight))


def _in_one_row(weight: Tensor, bias: Tensor | None) -> Map:
    tiles = in_tiles(weight)
    if bias is not None:
        bias = F.pad(bias, (0, -len(weight) % TILE)).view(-1, 1, TILE)
    return partial(_tile_by_tile, tiles, bias, len(weight))


def _in_blocks(weight: Tensor, bias: Tensor | None) -> Map:
    return partial(_by_onednn, torch.ops.mkldnn._reorder_linear_weight(weight), bias)


def _tile_by_tile(tiles: Tensor, bias: Tensor | None, leaving: int, x: Tensor) -> Tensor:
    count, entering, width = tiles.shape
    rows = x.reshape(1, -1, entering).expand(count, -1, -1)
    product = torch.bmm(rows, tiles) if bias is None else torch.baddbmm(bias, rows, tiles)
    # One row's tiles lie in order.
    product = product if x.numel() == entering else product.transpose(0, 1)
    product = product.reshape(*x.shape[:-1], -1)
    return product if count * width == leaving else product[..., :leaving]


def _by_onednn(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
