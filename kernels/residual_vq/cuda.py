"""residual_vq by the extension, whose source says how: csrc/residual_vq.cpp and csrc/residual_vq.cu."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def launch(latents: Tensor, codebooks: Tensor, splits: Sequence[int]) -> Tensor:
    levels, vectors = len(codebooks), latents.shape[1]
    codes = torch.empty(vectors, levels, dtype=torch.int64, device=latents.device)
    # Where the blocks of a GPU meet.
    choices = torch.empty(levels, vectors, dtype=torch.int64, device=latents.device) if latents.is_cuda else None
    ops = torch.ops.fastspeech_csrc
    ops.residual_vq(latents.contiguous(), codebooks.contiguous(), splits, codes, choices)
    return codes
