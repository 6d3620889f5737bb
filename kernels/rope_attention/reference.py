"""Attention with rotary positions in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rope_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inv_freq: Tensor | None,
    q_positions: Tensor | None,
    k_positions: Tensor | None,
    lengths: Tensor | None,
    causal: bool,
    window: int,
    interleaved: bool,
    scale: float,
) -> Tensor:
    queries, keys = q.shape[1], k.shape[1]
    row = torch.arange(keys - queries, keys, device=q.device)
    column = torch.arange(keys, device=q.device)
    if inv_freq is not None:
        q = rotate(q, turns(inv_freq, row[None] if q_positions is None else q_positions), interleaved)
        k = rotate(k, turns(inv_freq, column[None] if k_positions is None else k_positions), interleaved)
    mask = None
    if window or (causal and queries != keys) or (causal and lengths is not None):
        mask = column <= row[:, None]
        if window:
            mask = mask & (row[:, None] - column < window)
    if lengths is not None:
        valid = column < lengths[:, None]
        k, v = (side.masked_fill(~valid[:, :, None, None], 0) for side in (k, v))
        valid = valid[:, None, None]
        mask = valid if mask is None else valid & mask
    q, k, v = (side.transpose(1, 2) for side in (q, k, v))
    causal = causal and mask is None
    out = F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    if mask is not None:
        # What a backend of SDPA makes of a query that sees no key differs.
        out = out.masked_fill(~mask.any(-1, keepdim=True), 0)
    return out.transpose(1, 2).contiguous()


def turns(inv_freq: Tensor, positions: Tensor) -> Tensor:
    """exp(i * position * inv_freq), (rows, tokens, 1, pairs) complex, of positions (rows, tokens); in float32, or
    float64 where inv_freq is."""
    dtype = torch.promote_types(inv_freq.dtype, torch.float32)
    angles = (positions.to(dtype)[..., None] * inv_freq.to(dtype))[:, :, None]
    return torch.complex(angles.cos(), angles.sin())


def rotate(x: Tensor, by: Tensor, interleaved: bool) -> Tensor:
    """x (rows, tokens, heads, head_dim) with the pairs of its first dimensions turned by `turns`."""
    width = 2 * by.shape[-1]
    pairs = x[..., :width].to(by.real.dtype)
    # An interleaved pair is a complex number as it lies in memory, and complex products are fast.
    pairs = pairs.unflatten(-1, (-1, 2)) if interleaved else pairs.unflatten(-1, (2, -1)).transpose(-1, -2)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * by)
    turned = turned.flatten(-2) if interleaved else turned.transpose(-1, -2).flatten(-2)
    return torch.cat([turned.to(x.dtype), x[..., width:]], dim=-1)
