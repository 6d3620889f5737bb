"""Rotary positions outside `rope_attention`: for decoders, which keep rotated keys, and where weights are asked for."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.rope_attention.reference import rotate, turns


def inverse_frequencies(config: Any, head_dim: int, device: torch.device) -> Tensor:
    """(pairs,) float32: theta^(-2m / d), d the dims that `config.partial_rotary_factor` of a head has, rounded down."""
    dims = int(head_dim * config.partial_rotary_factor)
    return config.rope_theta ** -(torch.arange(0, dims, 2, dtype=torch.float32, device=device) / dims)


def rotation(inv_freq: Tensor, positions: Tensor) -> Callable[[Tensor], Tensor]:
    """What turns (rows, n, heads, head_dim) by positions (rows, n) or (1, n) int64, in interleaved pairs."""
    return partial(rotate, by=turns(inv_freq, positions), interleaved=True)
