"""The record of rope_attention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels.rope_attention import rope_attention
from fastspeech.kernels.spec import Case, Cost, OpSpec


def _inputs(
    dtype: torch.dtype,
    generator: torch.Generator,
    batch: int,
    frames: int,
    heads: int,
    head_dim: int,
    pairs: int = 0,
    queries: int | None = None,
    kv_heads: int | None = None,
    lengths: tuple[int, ...] | None = None,
    positions: bool = False,
    first: int = 0,
    **flags: Any,
) -> dict[str, Any]:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def stepping(tokens: int) -> Tensor:
        """Positions behind `first` that ascend by 1 to 3, different in each row."""
        return first + torch.randint(1, 4, (batch, tokens), generator=generator).cumsum(1)

    queries, kv_heads = frames if queries is None else queries, heads if kv_heads is None else kv_heads
    return {
        "q": normal(batch, queries, heads, head_dim),
        "k": normal(batch, frames, kv_heads, head_dim),
        "v": normal(batch, frames, kv_heads, head_dim),
        "inv_freq": (10000.0 ** -(torch.arange(pairs, dtype=torch.float64) / pairs)).to(dtype) if pairs else None,
        "q_positions": stepping(queries) if positions else None,
        "k_positions": stepping(frames) if positions else None,
        "lengths": None if lengths is None else torch.tensor(lengths),
        **flags,
    }


def _padding(k: Tensor, lengths: Tensor | None, **rest: Any) -> dict[str, Tensor]:
    if lengths is None:
        return {}
    behind = (torch.arange(k.shape[1]) >= lengths[:, None])[..., None, None]
    return {"k": behind, "v": behind}


def _cost(
    itemsize: int,
    batch: int,
    frames: int,
    heads: int,
    head_dim: int,
    pairs: int = 0,
    queries: int | None = None,
    kv_heads: int | None = None,
    causal: bool = False,
    window: int = 0,
    **rest: Any,
) -> Cost:
    queries, kv_heads = frames if queries is None else queries, heads if kv_heads is None else kv_heads
    # Causal queries that stand before the first key see none.
    seeing = min(queries, frames) if causal else queries
    seen = seeing * frames - (seeing * (seeing - 1) // 2 if causal else 0)
    seen = min(seen, seeing * window) if window else seen
    moved = head_dim * (2 * queries * heads + 2 * frames * kv_heads)
    # Two products over the head, a softmax of 5, and 6 a rotated pair.
    flops = heads * seen * (4 * head_dim + 5) + 6 * pairs * (queries * heads + frames * kv_heads)
    return Cost(bytes=itemsize * batch * moved, flops=batch * flops)


def _vary(shape: Mapping[str, Any], rows: int, length: int) -> dict[str, Any]:
    varied = {**shape, "batch": shape["batch"] + rows, "frames": shape["frames"] + length}
    if shape.get("queries", 1) > 1:
        varied["queries"] = shape["queries"] + length
    return {**varied, "lengths": (1,) * varied["batch"]} if shape.get("lengths") else varied


def _case(name: str, kind: Any, batch: int, frames: int, heads: int, head_dim: int, **rest: Any) -> Case:
    return Case(name, kind, {"batch": batch, "frames": frames, "heads": heads, "head_dim": head_dim, **rest})


SPEC = OpSpec(
    name="rope_attention",
    summary="attention with partial rotary positions, causal, windowed or full, and grouped heads",
    call=rope_attention,
    inputs=_inputs,
    cases=(
        _case("encoder", "ordinary", 2, 24, 2, 16, pairs=8, lengths=(24, 15)),
        _case("causal", "ordinary", 2, 16, 2, 16, pairs=8, causal=True),
        _case("half-split", "ordinary", 2, 16, 2, 16, pairs=4, interleaved=False, causal=True),
        _case("window", "ordinary", 1, 40, 2, 16, pairs=8, causal=True, window=7),
        _case("no rotation", "ordinary", 2, 16, 2, 16, scale=0.5),
        _case("grouped heads", "ordinary", 2, 16, 6, 16, kv_heads=2, pairs=8, causal=True, positions=True),
        _case("head of 9", "odd", 2, 11, 3, 9, pairs=4, kv_heads=1, lengths=(7, 11), causal=True),
        _case("head of 36", "odd", 3, 37, 3, 36, pairs=16, lengths=(37, 5, 19)),
        _case("head of 52", "odd", 1, 71, 5, 52, pairs=16, positions=True),
        _case("fewer queries", "odd", 2, 29, 3, 12, queries=5, pairs=5, causal=True, lengths=(29, 27)),
        _case("windowed rows", "odd", 3, 33, 2, 20, queries=9, pairs=7, causal=True, window=3, lengths=(33, 30, 26)),
        _case("more queries", "odd", 1, 5, 2, 12, queries=41, pairs=6, causal=True, interleaved=False),
        # Wide enough for tiles of keys that no edge of it crosses; and the last query that sees a tile of keys is, in
        # float32, the first of a tile of queries.
        _case("a wide window", "odd", 1, 201, 1, 16, pairs=3, causal=True, window=146),
        _case("late positions", "odd", 2, 19, 1, 14, pairs=7, positions=True, first=30000),
        # The largest product is the smallest score, by more than float32 can hold the exponential of.
        _case("a negative scale", "edge", 1, 70, 1, 16, scale=-40.0),
        _case("a step", "edge", 2, 21, 6, 12, queries=1, kv_heads=2, pairs=5, interleaved=False, causal=True),
        _case("one query", "edge", 3, 17, 4, 36, queries=1, pairs=16, positions=True, lengths=(17, 1, 9)),
        _case("one key", "edge", 2, 1, 2, 16, pairs=8, causal=True),
        _case("an empty row", "edge", 3, 17, 2, 16, pairs=8, lengths=(17, 0, 1)),
        _case("window of one", "edge", 1, 16, 1, 16, pairs=8, causal=True, window=1, positions=True),
        _case("one tile", "edge", 1, 64, 1, 64, pairs=32, lengths=(64,)),
        # Moonshine's encoders at 30 s, their decoders' self and cross attention, and Kyutai's sliding window.
        _case("moonshine-tiny 30 s", "model", 2, 1248, 8, 36, pairs=16, lengths=(1248, 415)),
        _case("moonshine-base 10 s", "model", 1, 415, 8, 52, pairs=16),
        _case("moonshine-tiny step", "model", 8, 64, 8, 36, queries=1, pairs=16, causal=True, positions=True),
        _case("moonshine-tiny cross", "model", 8, 415, 8, 36, queries=1, lengths=(415,) * 7 + (200,)),
        _case("kyutai window", "model", 1, 1024, 16, 64, pairs=32, causal=True, window=250),
    ),
    cost=_cost,
    padding=_padding,
    batched=("q", "k", "v", "q_positions", "k_positions", "lengths"),
    vary=_vary,
)
