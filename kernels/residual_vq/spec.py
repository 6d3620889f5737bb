"""The record of residual_vq."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.residual_vq import residual_vq
from fastspeech.kernels.spec import Case, Cost, OpSpec
from fastspeech.kernels.tolerance import RULE, Verdict


def _inputs(
    dtype: torch.dtype,
    generator: torch.Generator,
    vectors: int,
    splits: tuple[int, ...],
    codes: int,
    dim: int,
    copies: int = 1,
    on_codes: bool = False,
) -> dict[str, Any]:
    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    codebooks = 0.3 * normal(sum(splits), codes // copies, dim).repeat(1, copies, 1)
    latents = normal(len(splits), vectors, dim)
    if on_codes:
        latents = codebooks[0, torch.randint(codes, latents.shape[:2], generator=generator)]
    return {"latents": latents.to(dtype), "codebooks": codebooks.to(dtype), "splits": list(splits)}


def _cost(itemsize: int, vectors: int, splits: tuple[int, ...], codes: int, dim: int, **_: Any) -> Cost:
    levels = sum(splits)
    moved = itemsize * dim * (levels * codes + len(splits) * vectors) + 8 * vectors * levels
    # Squares of the entries, and for each vector the products with them and the comparison.
    return Cost(bytes=moved, flops=levels * codes * (2 * dim + vectors * (2 * dim + 2)))


def _vary(shape: Mapping[str, Any], rows: int, length: int) -> dict[str, Any]:
    return {**shape, "vectors": shape["vectors"] + rows + length}


def _excess(codes: Tensor, latents: Tensor, codebooks: Tensor, splits: Sequence[int]) -> float:
    """How much farther than the nearest entry a chosen one lies at worst, given the choices before it.

    In float64 and squared distances, relative to the squares that such a distance is the difference of. Infinite where
    an entry is none, or the same entry comes earlier in the codebook.
    """
    count = codebooks.shape[1]
    if ((codes < 0) | (codes >= count)).any():
        return float("inf")
    worst, level = 0.0, 0
    for residual, levels in zip(latents.double().unbind(), splits, strict=True):
        for _ in range(levels):
            codebook, chosen = codebooks[level].double(), codes[:, level]
            entries = codebook[chosen]
            exact = "donot_use_mm_for_euclid_dist"
            distances = torch.cdist(residual, codebook, compute_mode=exact).square()
            same = torch.cdist(entries, codebook, compute_mode=exact) == 0
            if (same.int().argmax(dim=1) != chosen).any():
                return float("inf")
            squares = residual.square().sum(1) + codebook.square().sum(1).max()
            excess = (distances.gather(1, chosen[:, None])[:, 0] - distances.amin(dim=1)) / squares
            worst = max([worst, *excess.tolist()])
            residual, level = residual - entries, level + 1
    return worst


def _judge(codes: Tensor, plain: Tensor, latents: Tensor, codebooks: Tensor, splits: Sequence[int]) -> Verdict:
    """Codes are exact but where two entries are equally near within rounding.

    One such choice changes all later codes of its vector, so codes are not compared with the reference's: each is
    held to what is nearest after the choices before it. It may be farther by the rule for any other rounded number,
    twice the reference's own excess in the same dtype and two units in the last place of the squares involved.
    """
    if codes.shape != plain.shape:
        raise AssertionError(f"shape {tuple(codes.shape)} where the reference gives {tuple(plain.shape)}")
    allowed = RULE.factor * _excess(plain, latents, codebooks, splits)
    return Verdict(
        _excess(codes, latents, codebooks, splits), allowed + RULE.floor_ulps * torch.finfo(latents.dtype).eps
    )


SPEC = OpSpec(
    name="residual_vq",
    summary="codes of vectors by residual quantisation, every level of every group",
    call=residual_vq,
    inputs=_inputs,
    cases=(
        Case("two groups", "ordinary", {"vectors": 6, "splits": (1, 3), "codes": 64, "dim": 32}),
        Case("one group", "ordinary", {"vectors": 9, "splits": (4,), "codes": 32, "dim": 16}),
        Case("odd sizes", "odd", {"vectors": 37, "splits": (2, 3), "codes": 83, "dim": 19}),
        Case("many vectors", "odd", {"vectors": 131, "splits": (1, 2), "codes": 70, "dim": 44}),
        # So many entries in so few dimensions that a small error is soon a wrong code.
        Case("many levels", "odd", {"vectors": 13, "splits": (1, 5), "codes": 251, "dim": 5}),
        Case("one vector", "edge", {"vectors": 1, "splits": (1, 2), "codes": 40, "dim": 24}),
        Case("one code", "edge", {"vectors": 3, "splits": (2,), "codes": 1, "dim": 5}),
        Case("one dimension", "edge", {"vectors": 5, "splits": (1, 1), "codes": 7, "dim": 1}),
        Case("every code twice", "edge", {"vectors": 21, "splits": (1, 2), "codes": 62, "dim": 24, "copies": 2}),
        Case("two codes in turn", "edge", {"vectors": 5, "splits": (2,), "codes": 62, "dim": 24, "copies": 31}),
        # A residual of zero: what is left is to find the shortest entry.
        Case("vectors that are codes", "edge", {"vectors": 8, "splits": (3,), "codes": 9, "dim": 16, "on_codes": True}),
        # Mimi's quantiser as Kyutai STT uses it, a frame of one stream and of many.
        Case("mimi, one stream", "model", {"vectors": 1, "splits": (1, 31), "codes": 2048, "dim": 256}),
        Case("mimi, 64 streams", "model", {"vectors": 64, "splits": (1, 31), "codes": 2048, "dim": 256}),
    ),
    cost=_cost,
    vary=_vary,
    dtypes=(torch.float32,),
    judge=_judge,
)
