"""rope_attention by the extension, which serves CPU tensors only: csrc/rope_attention.cpp."""

from __future__ import annotations

import torch
from torch import Tensor


def launch(
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
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    turns: list[Tensor | None] = [None] * 4
    if inv_freq is not None:
        queries, keys = q.shape[1], k.shape[1]
        if q_positions is None:
            q_positions = torch.arange(keys - queries, keys)[None]
        if k_positions is None:
            k_positions = torch.arange(keys)[None]
        turns = [*_turns(inv_freq, q_positions), *_turns(inv_freq, k_positions)]
    torch.ops.fastspeech_csrc.rope_attention(
        q,
        k,
        v,
        *turns,
        None if lengths is None else lengths.long().contiguous(),
        causal,
        window,
        interleaved,
        scale,
        out,
    )
    return out


def _turns(inv_freq: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines (rows, tokens, pairs) float32."""
    angles = positions.float()[..., None] * inv_freq.float()
    return angles.cos().contiguous(), angles.sin().contiguous()
