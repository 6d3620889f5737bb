"""A linear map whose weights lie in tiles, in plain PyTorch."""

import torch.nn.functional as F
from torch import Tensor


def tiled_linear(x: Tensor, tiles: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    return F.linear(x, tiles.transpose(1, 2).flatten(0, 1)[:outputs], bias)
