"""Argument checks that ops share: a clear error before any memory is touched."""

from __future__ import annotations

import torch
from torch import Tensor


def rank(name: str, tensor: Tensor, dims: int, shape: str) -> None:
    if tensor.dim() != dims:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def shape(name: str, tensor: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must have shape {meaning} = {expected}, got {tuple(tensor.shape)}")


def floating(**tensors: Tensor | None) -> None:
    """Every tensor given is floating, of one dtype and on one device."""
    present = {name: t for name, t in tensors.items() if t is not None}
    first_name, first = next(iter(present.items()))
    for name, t in present.items():
        if not t.dtype.is_floating_point:
            raise TypeError(f"{name} must be floating, got {t.dtype}")
        if t.dtype != first.dtype or t.device != first.device:
            raise ValueError(
                f"{name} ({t.dtype}, {t.device}) and {first_name} ({first.dtype}, {first.device}) must agree"
            )


def lengths(tensor: Tensor | None, batch: int, device: torch.device) -> None:
    """Lengths of the rows of a batch: (batch,) int32 or int64 on the call's device, or None for full rows."""
    if tensor is None:
        return
    if tensor.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"lengths must be int32 or int64, got {tensor.dtype}")
    if tuple(tensor.shape) != (batch,) or tensor.device != device:
        raise ValueError(f"lengths must be ({batch},) on {device}, got {tuple(tensor.shape)} on {tensor.device}")
