"""The record of embed_sum."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from fastspeech.kernels.embed_sum import embed_sum
from fastspeech.kernels.spec import Case, Cost, OpSpec


def _inputs(
    dtype: torch.dtype,
    generator: torch.Generator,
    shape: tuple[int, ...],
    vocabularies: tuple[int, ...],
    hidden: int,
    padded: float = 0.0,
) -> dict[str, Any]:
    sizes = torch.tensor(vocabularies)
    # The last entry is nobody's: that of the padding.
    pad_id = sum(vocabularies)
    table = torch.randn(pad_id + 1, hidden, generator=generator, dtype=torch.float64)
    drawn = torch.rand(*shape, len(vocabularies), generator=generator)
    ids = (drawn * sizes).long().clamp(max=sizes - 1)
    pads = torch.rand(ids.shape, generator=generator) < padded
    return {
        "table": table.to(dtype),
        "ids": ids.masked_fill(pads, pad_id),
        "offsets": sizes.cumsum(0) - sizes,
        "pad_id": pad_id,
    }


def _cost(
    itemsize: int, shape: tuple[int, ...], vocabularies: tuple[int, ...], hidden: int, padded: float = 0.0
) -> Cost:
    tokens, columns = torch.Size(shape).numel(), len(vocabularies)
    return Cost(
        bytes=itemsize * tokens * hidden * (columns + 1) + 8 * columns * (tokens + 1), flops=tokens * columns * hidden
    )


def _vary(shape: Mapping[str, Any], rows: int, length: int) -> dict[str, Any]:
    # A step stays a step.
    batch, *frames = shape["shape"]
    return {**shape, "shape": (batch + rows, *(size + length if size > 1 else size for size in frames))}


KYUTAI = {"vocabularies": (501, *(257,) * 32), "hidden": 2048}
"""The columns and the width of Kyutai STT 2.6B, an eighth of its codes: a table that tests can draw."""

SPEC = OpSpec(
    name="embed_sum",
    summary="sums of the embeddings of several token streams in one table",
    call=embed_sum,
    inputs=_inputs,
    cases=(
        Case("frames", "ordinary", {"shape": (2, 5), "vocabularies": (11, 7, 7, 7), "hidden": 64}),
        Case("one axis", "ordinary", {"shape": (6,), "vocabularies": (9, 9), "hidden": 32}),
        Case("33 columns", "ordinary", {"shape": (2, 3), "vocabularies": (20, *(5,) * 32), "hidden": 48}),
        Case("odd sizes", "odd", {"shape": (3, 7), "vocabularies": (13, 5, 3), "hidden": 83, "padded": 0.3}),
        Case("a wide table", "odd", {"shape": (5,), "vocabularies": (3, 2, 2, 2, 2), "hidden": 1291, "padded": 0.1}),
        Case("one token", "edge", {"shape": (1, 1), "vocabularies": (6, 4), "hidden": 40}),
        Case("one column", "edge", {"shape": (2, 3), "vocabularies": (8,), "hidden": 16, "padded": 0.5}),
        Case("one component", "edge", {"shape": (2, 3), "vocabularies": (4, 4), "hidden": 1}),
        Case("only padding", "edge", {"shape": (2, 2), "vocabularies": (4, 4), "hidden": 24, "padded": 1.0}),
        # A step of Kyutai STT 2.6B on one stream and on 64; 10 s of one stream given at once.
        Case("kyutai step", "model", {"shape": (1, 1), **KYUTAI}),
        Case("kyutai 64 streams", "model", {"shape": (64, 1), **KYUTAI}),
        Case("kyutai prefill", "model", {"shape": (1, 125), **KYUTAI}),
    ),
    cost=_cost,
    batched=("ids",),
    vary=_vary,
)
