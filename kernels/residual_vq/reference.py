"""Residual vector quantisation, in plain PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def residual_vq(latents: Tensor, codebooks: Tensor, splits: Sequence[int]) -> Tensor:
    codes = []
    levels = iter(codebooks.unbind())
    for latent, count in zip(latents.unbind(), splits, strict=True):
        residual = latent
        for _ in range(count):
            codebook = next(levels)
            # The squared distance without the residual's own square, which is the same for every code.
            squares = torch.linalg.vector_norm(codebook, dim=-1).square()
            nearest = torch.addmm(squares, residual, codebook.T, alpha=-2).argmin(dim=-1)
            residual = residual - codebook[nearest]
            codes.append(nearest)
    return torch.stack(codes, dim=-1)
