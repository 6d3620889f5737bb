"""What people would call in place of an op: contenders beside its own implementations.

Each is made from the op's inputs, and gives the op's outputs; None where it has no way to compute that case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastspeech.bench.timing import Function
from fastspeech.kernels.rope_attention.reference import rotate, turns


def _materialised_bias(inputs: dict[str, Any]) -> Function:
    """Transformer-XL attention as models without a kernel for it run: the positions' scores shifted in memory and
    handed to SDPA as a bias (Dai et al. 2019, appendix B)."""
    q, k, v, r, bias_u, bias_v, lengths = (
        inputs[name] for name in ("q", "k", "v", "r", "bias_u", "bias_v", "lengths")
    )
    batch, frames, heads, head_dim = q.shape
    scale = inputs.get("scale") or head_dim**-0.5
    hidden = None
    if lengths is not None:
        hidden = (torch.arange(frames, device=q.device) >= lengths[:, None])[:, None, None]

    def run() -> Tensor:
        by_position = (q + bias_v).transpose(1, 2) @ r.permute(1, 2, 0)
        padded = F.pad(by_position, (1, 0)).view(batch, heads, 2 * frames, frames)
        bias = padded[:, :, 1:].reshape(batch, heads, frames, 2 * frames - 1)[..., :frames] * scale
        if hidden is not None:
            bias = bias.masked_fill(hidden, -torch.inf)
        query = (q + bias_u).transpose(1, 2)
        out = F.scaled_dot_product_attention(query, k.transpose(1, 2), v.transpose(1, 2), bias, scale=scale)
        return out.transpose(1, 2).contiguous()

    return run


def _rotated_sdpa(inputs: dict[str, Any]) -> Function | None:
    """Rotation, then SDPA, with heads padded to a multiple of 8 for its flash kernel."""
    q, k, v, inv_freq = (inputs[name] for name in ("q", "k", "v", "inv_freq"))
    if inputs.get("lengths") is not None or inputs.get("window"):
        return None
    queries, keys, head_dim = q.shape[1], k.shape[1], q.shape[3]
    causal = bool(inputs.get("causal")) and queries > 1
    scale = inputs.get("scale") or head_dim**-0.5
    pad = -head_dim % 8

    def turned(x: Tensor, positions: Tensor | None, first: int) -> Tensor:
        if inv_freq is None:
            return x
        if positions is None:
            positions = torch.arange(first, first + x.shape[1], device=x.device)[None]
        return rotate(x, turns(inv_freq, positions), inputs.get("interleaved", True))

    def run() -> Tensor:
        sides = turned(q, inputs.get("q_positions"), keys - queries), turned(k, inputs.get("k_positions"), 0), v
        query, key, value = (F.pad(side, (0, pad)).transpose(1, 2) for side in sides)
        grouped = query.shape[1] != key.shape[1]
        out = F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale, enable_gqa=grouped)
        return out[..., :head_dim].transpose(1, 2).contiguous()

    return run


PEERS: dict[str, dict[str, Callable[[dict[str, Any]], Function | None]]] = {
    "relpos_attention": {"materialised bias, SDPA": _materialised_bias},
    "rope_attention": {"rotation, SDPA": _rotated_sdpa},
}
"""By op."""
