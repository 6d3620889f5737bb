"""What Speech2Text's encoder and decoder share, with the parameter names of transformers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastspeech.layers.derived import DerivingModule
from fastspeech.layers.linear import PackedLinear, direct, rectified
from fastspeech.layers.relaid import Map, Product


class Projections(DerivingModule):
    """The projections of an attention sublayer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self._packed = PackedLinear()

    def qkv(self, product: Product | None = None) -> Map:
        """As `fastspeech.layers.attention.Projections.qkv`."""
        maps = self.q_proj, self.k_proj, self.v_proj
        return self._packed.function(maps) if product is None else product(*maps)


def dropped(function: Map, probability: float, training: bool) -> Map:
    """`function` with dropout of its result in training."""
    if not training or probability == 0:
        return function
    return lambda x: F.dropout(function(x), probability)


def feed_forward(
    fc1: nn.Linear, fc2: nn.Linear, act: Map, probability: float, training: bool, product: Product = direct
) -> Map:
    """The function fc2(act(fc1(x))), with dropout before fc2 in training."""
    up, down = product(fc1), product(fc2)
    activated = rectified(fc1) if product is direct and act is F.relu else lambda h: act(up(h))
    inner = dropped(activated, probability, training)
    return lambda h: down(inner(h))


class SinusoidalPositions(nn.Module):
    """A table of positions: sin(p w_j) beside cos(p w_j), w_j = 10000^(-j / (width / 2 - 1)); zeros at the row of
    padding (fairseq's SinusoidalPositionalEmbedding). The first position is the row behind that."""

    weights: Tensor

    def __init__(self, positions: int, width: int, padding: int) -> None:
        super().__init__()
        self.positions, self.width, self.padding = positions, width, padding
        self.reset_buffers()

    def reset_buffers(self) -> None:
        self.register_buffer("weights", self._table(self.positions + 2), persistent=False)

    def forward(
        self, valid: Tensor | None, count: int, past: int, like: Tensor, behind: Tensor | None = None
    ) -> Tensor:
        """Positions (rows, count, width), or (1, count, width), of `count` items behind `past` others, as `like`.

        valid: (rows, count) bool, false at padding, which is not counted; None where nothing is padding.
        behind: (rows, 1), of each row, in place of `past`, which then is the most of them.
        """
        if (rows := self.padding + 1 + past + count) > len(self.weights):
            # Half as many again, so that a long run does not make a table at each step.
            self.weights = self._table(rows + rows // 2).to(self.weights)
        if valid is not None and behind is not None:
            numbers = (valid.cumsum(1) + behind) * valid + self.padding
            return F.embedding(numbers, self.weights).to(like.dtype)
        if valid is None:
            return self.weights[rows - count : rows][None].to(like.dtype)
        if count == 1:
            return (self.weights[rows - 1] * valid[..., None]).to(like.dtype)
        numbers = (valid.cumsum(1) + past) * valid + self.padding
        return F.embedding(numbers, self.weights).to(like.dtype)

    def _table(self, rows: int) -> Tensor:
        half = self.width // 2
        # In float32, as the models were trained: at position 6000 its rounding is seen.
        rates = torch.exp(torch.arange(half, dtype=torch.float32) * -(math.log(10000.0) / (half - 1)))
        angles = torch.arange(rows, dtype=torch.float32)[:, None] * rates
        table = F.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, self.width % 2))
        table[self.padding] = 0
        return table
