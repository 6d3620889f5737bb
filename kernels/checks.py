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


def pages(key_pages: Tensor, value_pages: Tensor) -> None:
    """Pages of keys and values: two tensors (pages, kv_heads, page_size, head_dim), alike and not empty."""
    rank("key_pages", key_pages, 4, "(pages, kv_heads, page_size, head_dim)")
    shape("value_pages", value_pages, tuple(key_pages.shape), "key_pages' shape")
    floating(key_pages=key_pages, value_pages=value_pages)
    if key_pages.numel() == 0:
        raise ValueError(f"key_pages must not be empty, got {tuple(key_pages.shape)}")


def stored(pages: Tensor, x: Tensor, **scales: Tensor | None) -> None:
    """How pages hold what is in x's dtype: in that or as float8_e4m3fn, and over scales (kv_heads,), float32 or in x's
    dtype, or None."""
    if pages.dtype not in (x.dtype, torch.float8_e4m3fn) or pages.device != x.device:
        raise ValueError(f"pages must be {x.dtype} or float8_e4m3fn on {x.device}, got {pages.dtype} on {pages.device}")
    for name, scale in scales.items():
        if scale is None:
            continue
        if tuple(scale.shape) != (pages.shape[1],) or scale.device != x.device:
            raise ValueError(
                f"{name} must be ({pages.shape[1]},) on {x.device}, got {tuple(scale.shape)} on {scale.device}"
            )
        if scale.dtype not in (torch.float32, x.dtype):
            raise TypeError(f"{name} must be float32 or {x.dtype}, got {scale.dtype}")


def rows_of_pages(table: Tensor | None, positions: Tensor, rows: int, pages: Tensor) -> None:
    """Where rows stand and which pages they own: positions (rows,) int64, table (rows, columns) int32 or None."""
    if positions.dtype != torch.int64:
        raise TypeError(f"positions must be int64, got {positions.dtype}")
    if tuple(positions.shape) != (rows,) or positions.device != pages.device:
        raise ValueError(
            f"positions must be ({rows},) on {pages.device}, got {tuple(positions.shape)} on {positions.device}"
        )
    if table is None:
        if len(pages) != rows:
            raise ValueError(f"without a table every row owns a page: {rows} rows, {len(pages)} pages")
        return
    if table.dtype != torch.int32:
        raise TypeError(f"table must be int32, got {table.dtype}")
    if table.dim() != 2 or len(table) != rows or table.shape[1] == 0 or table.device != pages.device:
        raise ValueError(
            f"table must be ({rows}, columns) on {pages.device}, got {tuple(table.shape)} on {table.device}"
        )


def rotation(inv_freq: Tensor | None, x: Tensor) -> None:
    """Frequencies of a rotation of x (..., head_dim): (pairs,), float32 or in x's dtype, or None."""
    if inv_freq is None:
        return
    if inv_freq.dim() != 1 or 2 * len(inv_freq) > x.shape[-1]:
        raise ValueError(f"inv_freq must be (pairs,), at most {x.shape[-1] // 2} of them, got {tuple(inv_freq.shape)}")
    if inv_freq.dtype not in (torch.float32, x.dtype) or inv_freq.device != x.device:
        raise ValueError(
            f"inv_freq must be float32 or {x.dtype} on {x.device}, got {inv_freq.dtype}, {inv_freq.device}"
        )
