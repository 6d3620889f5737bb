"""paged_attention by the extension, which serves CPU tensors only: csrc/paged_attention.cpp."""

from __future__ import annotations

import torch
from torch import Tensor


def launch(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    table: Tensor | None,
    positions: Tensor,
    inv_freq: Tensor | None,
    interleaved: bool,
    causal: bool,
    window: int,
    scale: float,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
) -> Tensor:
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    torch.ops.fastspeech_csrc.paged_attention(
        q,
        key_pages,
        value_pages,
        None if table is None else table.contiguous(),
        positions.contiguous(),
        None if inv_freq is None else inv_freq.float().contiguous(),
        interleaved,
        causal,
        window,
        scale,
        None if key_scales is None else key_scales.float().contiguous(),
        None if value_scales is None else value_scales.float().contiguous(),
        out,
    )
    return out
