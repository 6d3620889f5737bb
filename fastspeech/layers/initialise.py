"""The weights of a new model."""

from typing import cast

import torch
from torch import Tensor, nn


def initialise(module: nn.Module, std: float) -> None:
    """Weights normal with that deviation, biases and the embedding of padding 0; norms stay as they are made."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)):
            nn.init.normal_(part.weight, 0.0, std)
        if isinstance(part, (nn.Linear, nn.Conv1d, nn.Conv2d)) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            with torch.no_grad():
                cast(Tensor, part.weight)[part.padding_idx].zero_()
