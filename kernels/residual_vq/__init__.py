"""residual_vq: the codes of latent vectors, each level quantising what the levels before it left."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastspeech.kernels import checks
from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op
from fastspeech.kernels.residual_vq.reference import residual_vq as _reference


def _fake(latents: Tensor, codebooks: Tensor, splits: Sequence[int]) -> Tensor:
    return latents.new_empty(latents.shape[1], codebooks.shape[0], dtype=torch.int64)


def _cuda_limits(latents: Tensor, codebooks: Tensor, splits: Sequence[int]) -> str | None:
    if latents.dtype != torch.float32:
        return f"float32 only, these are {latents.dtype}"
    if latents.is_cuda and (codebooks.shape[2] > 768 or len(splits) > 16):
        return f"{len(splits)} groups of vectors of {codebooks.shape[2]} values, at most 16 of 768 fit a block"
    return None


_op = Op(
    _reference,
    _fake,
    (Implementation("cuda", "fastspeech.kernels.residual_vq.cuda", _cuda_limits, on_cpu=True),),
)


def residual_vq(latents: Tensor, codebooks: Tensor, splits: Sequence[int]) -> Tensor:
    """Codes of latent vectors by residual vector quantisation (Zeghidour et al., SoundStream, 2021, algorithm 1).

    A group of levels starts from its own latents. At each of its levels the code is the index of the codebook's entry
    that is nearest to the residual (Euclidean; the first of those equally near), and the entry is taken off the
    residual before the next level. The split quantiser of Mimi (Defossez et al., Moshi, 2024) has two groups,
    one level for meaning and 31 for sound.

    Distances that differ by less than their rounding may be told apart either way, and every later code of that
    vector then follows from the choice.

    Args:
        latents: (groups, vectors, dim), a group's projection of the vectors.
        codebooks: (levels, codes, dim), the levels of the first group first.
        splits: levels of each group, their sum is `levels`.

    Returns:
        codes, (vectors, levels), int64. Those of a vector that is not finite are valid indices, and say nothing.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.
    """
    checks.rank("latents", latents, 3, "(groups, vectors, dim)")
    checks.rank("codebooks", codebooks, 3, "(levels, codes, dim)")
    checks.floating(latents=latents, codebooks=codebooks)
    levels, codes, dim = codebooks.shape
    checks.shape("latents", latents, (len(splits), latents.shape[1], dim), "(one per split, vectors, codebooks' dim)")
    if sum(splits) != levels or min(splits, default=0) < 1 or codes < 1:
        raise ValueError(f"splits {list(splits)} must be positive and sum to the {levels} levels of at least one code")
    return _op(latents, codebooks, splits)
