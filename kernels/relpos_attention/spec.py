"""The record of relpos_attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.relpos_attention import relpos_attention
from fastspeech.kernels.spec import Case, Cost, OpSpec


def _inputs(
    dtype: torch.dtype,
    generator: torch.Generator,
    batch: int,
    frames: int,
    heads: int,
    dim: int,
    lengths: tuple[int, ...] | None = None,
    offset: float = 0.0,
) -> dict[str, Any]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # Slices of one packed projection, as a model has them.
    packed = normal(batch, frames, 3, heads, dim)
    bias_u = normal(heads, dim)
    if offset:
        # The bias adds it to all scores alike, by one component of the keys.
        packed[:, :, 1, :, 0] = 1
        bias_u[:, 0] = offset * dim**0.5
    q, k, v = packed.to(dtype).unbind(2)
    return {
        "q": q,
        "k": k,
        "v": v,
        "r": normal(2 * frames - 1, heads, dim).to(dtype),
        "bias_u": bias_u.to(dtype),
        "bias_v": normal(heads, dim).to(dtype),
        "lengths": None if lengths is None else torch.tensor(lengths),
        "scale": dim**-0.5,
    }


def _padding(q: Tensor, lengths: Tensor | None, **rest: Any) -> dict[str, Tensor]:
    if lengths is None:
        return {}
    behind = (torch.arange(q.shape[1]) >= lengths[:, None])[..., None, None]
    # An empty row is specified: it gives 0.
    return {"q": behind, "k": behind, "v": behind, "output": behind & (lengths > 0)[:, None, None, None]}


def _cost(
    itemsize: int,
    batch: int,
    frames: int,
    heads: int,
    dim: int,
    lengths: tuple[int, ...] | None = None,
    offset: float = 0.0,
) -> Cost:
    row = heads * dim
    pairs = sum(length * length for length in lengths or (frames,) * batch)
    # Content scores, position scores and weighted sum, 2 flops a component each; biases and softmax are not counted.
    return Cost(bytes=itemsize * row * (4 * batch * frames + 2 * frames + 1), flops=6 * pairs * row)


SPEC = OpSpec(
    name="relpos_attention",
    summary="Transformer-XL attention without a bias in memory, key-length masks",
    call=relpos_attention,
    inputs=_inputs,
    cases=(
        Case("short", "ordinary", {"batch": 2, "frames": 48, "heads": 2, "dim": 32, "lengths": (48, 20)}),
        Case("full rows", "ordinary", {"batch": 1, "frames": 50, "heads": 1, "dim": 16}),
        Case("cohere's head", "ordinary", {"batch": 1, "frames": 40, "heads": 1, "dim": 160, "lengths": (33,)}),
        Case("scores near 200", "edge", {"batch": 1, "frames": 40, "heads": 2, "dim": 16, "offset": 200.0}),
        Case("scores near -200", "edge", {"batch": 1, "frames": 33, "heads": 1, "dim": 16, "offset": -200.0}),
        Case("odd sizes", "odd", {"batch": 2, "frames": 11, "heads": 2, "dim": 36, "lengths": (11, 7)}),
        Case("odd rows", "odd", {"batch": 3, "frames": 43, "heads": 1, "dim": 36, "lengths": (43, 35, 7)}),
        Case("odd tiles", "odd", {"batch": 1, "frames": 99, "heads": 1, "dim": 20, "lengths": (98,)}),
        Case("one frame", "edge", {"batch": 2, "frames": 1, "heads": 2, "dim": 16, "lengths": (1, 0)}),
        Case("two frames", "edge", {"batch": 1, "frames": 2, "heads": 1, "dim": 17}),
        Case("one component", "edge", {"batch": 1, "frames": 5, "heads": 2, "dim": 1}),
        Case("one tile", "edge", {"batch": 1, "frames": 64, "heads": 1, "dim": 32, "lengths": (64,)}),
        Case("one less than a tile", "edge", {"batch": 1, "frames": 63, "heads": 1, "dim": 16, "lengths": (31,)}),
        Case("one more than a tile", "edge", {"batch": 2, "frames": 65, "heads": 1, "dim": 16, "lengths": (65, 33)}),
        Case("an empty row", "edge", {"batch": 3, "frames": 17, "heads": 1, "dim": 20, "lengths": (17, 0, 1)}),
        Case("the widest head", "edge", {"batch": 1, "frames": 33, "heads": 1, "dim": 256, "lengths": (30,)}),
        # Cohere ASR's encoder at its longest clip, alone and in a batch of unequal ones; the head of a Parakeet.
        Case("cohere 35 s", "model", {"batch": 1, "frames": 438, "heads": 8, "dim": 160, "lengths": (438,)}),
        Case(
            "cohere batch",
            "model",
            {"batch": 32, "frames": 438, "heads": 8, "dim": 160, "lengths": tuple(range(438, 118, -10))},
        ),
        Case("parakeet 10 s", "model", {"batch": 2, "frames": 126, "heads": 8, "dim": 128}),
    ),
    cost=_cost,
    padding=_padding,
    batched=("q", "k", "v", "lengths"),
)
