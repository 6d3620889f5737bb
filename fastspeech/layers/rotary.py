"""Rotary positions outside `rope_attention`: for decoders, which keep rotated keys, and where weights are asked for."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastspeech.kernels.rope_attention.reference import rotate, turns


def inverse_frequencies(config: Any, head_dim: int, device: torch.device) -> Tensor:
    """(pairs,) float32: theta^(-2m / d), d the dims that `config.partial_rotary_factor` of a head has, rounded down."""
    dims = int(head_dim * config.partial_rotary_factor)
    return config.rope_theta ** -(torch.arange(0, dims, 2, dtype=torch.float32, device=device) / dims)


def rotation(inv_freq: Tensor, positions: Tensor) -> Callable[[Tensor], Tensor]:
    """What turns (rows, n, heads, head_dim) by positions (rows, n) or (1, n) int64, in interleaved pairs."""
    return partial(rotate, by=turns(inv_freq, positions), interleaved=True)


def joint_turns(inv_freq: Tensor, positions: Tensor, turned: int, left: int, head_dim: int) -> Tensor:
    """(rows, n, turned + left, head_dim / 2) complex, rounded up: what `joint_rotation` multiplies pairs of heads by.
    It turns `turned` heads by positions (rows, n); `left` heads and the dimensions without a frequency it leaves."""
    by = turns(inv_freq, positions)
    factors = by.new_ones(*by.shape[:2], turned + left, (head_dim + 1) // 2)
    factors[:, :, :turned, : by.shape[3]] = by
    return factors


def joint_rotation(factors: Tensor, x: Tensor) -> Tensor:
    """x (rows, n, heads, head_dim) turned by `joint_turns`: in one product, where turning some dimensions of some heads
    takes x apart and puts it together again."""
    width = x.shape[-1]
    even = x if width % 2 == 0 else F.pad(x, (0, 1))
    pairs = torch.view_as_complex(even.to(factors.real.dtype).unflatten(-1, (-1, 2)))
    turned = torch.view_as_real(pairs * factors).flatten(-2).to(x.dtype)
    return turned if width % 2 == 0 else turned[..., :width]
