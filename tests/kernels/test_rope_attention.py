"""rope_attention's reference against its definition written out pair by pair, and the calls it refuses."""

import cmath
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastspeech.kernels import rope_attention


def written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    inv_freq: list[float],
    q_positions: list[list[int]],
    k_positions: list[list[int]],
    lengths: list[int],
    causal: bool,
    window: int,
    interleaved: bool,
) -> Tensor:
    """The definition in loops."""
    out = torch.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b in range(q.shape[0]):
        for head in range(q.shape[2]):
            turned = [turn(k[b, j, head // group], k_positions[b][j], inv_freq, interleaved) for j in range(k.shape[1])]
            for i in range(q.shape[1]):
                at = i + k.shape[1] - q.shape[1]
                seen = [j for j in range(lengths[b]) if not causal or (j <= at and not (window and at - j >= window))]
                row = turn(q[b, i, head], q_positions[b][i], inv_freq, interleaved)
                weights = [math.exp(float(row @ turned[j]) / q.shape[3] ** 0.5) for j in seen]
                for weight, j in zip(weights, seen, strict=True):
                    out[b, i, head] += weight / sum(weights) * v[b, j, head // group]
    return out


def turn(x: Tensor, position: int, inv_freq: list[float], interleaved: bool) -> Tensor:
    x = x.clone()
    for m, frequency in enumerate(inv_freq):
        a, b = (2 * m, 2 * m + 1) if interleaved else (m, m + len(inv_freq))
        moved = complex(x[a], x[b]) * cmath.exp(1j * position * frequency)
        x[a], x[b] = moved.real, moved.imag
    return x


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(
    ("queries", "kv_heads", "causal", "window", "lengths", "given"),
    [
        (7, 4, False, 0, (7, 7), ""),
        (7, 4, True, 0, (7, 7), ""),
        (7, 2, True, 3, (7, 5), "rows"),
        (3, 1, True, 0, (7, 6), "shared"),
        (3, 2, True, 2, (7, 4), ""),
        (2, 4, False, 0, (0, 3), "shared"),
    ],
)
def test_reference(
    interleaved: bool, queries: int, kv_heads: int, causal: bool, window: int, lengths: tuple[int, ...], given: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, queries, 4, 7, generator=generator, dtype=torch.float64)
    k, v = torch.randn(2, 2, 7, kv_heads, 7, generator=generator, dtype=torch.float64)
    inv_freq = torch.tensor([1.0, 0.3, 0.05], dtype=torch.float64)
    rows = {"": 0, "shared": 1, "rows": 2}[given]
    q_positions = torch.randint(0, 50, (rows, queries), generator=generator) if given else None
    k_positions = torch.randint(0, 50, (rows, 7), generator=generator) if given else None
    full = min(lengths) == 7
    flags: dict[str, Any] = {"causal": causal, "window": window, "interleaved": interleaved}
    found = rope_attention(
        q, k, v, inv_freq, q_positions, k_positions, None if full else torch.tensor(lengths), **flags
    )
    steps = [list(range(7 - queries, 7))] if q_positions is None else q_positions.tolist()
    keys = [list(range(7))] if k_positions is None else k_positions.tolist()
    steps, keys = (both * 2 if len(both) == 1 else both for both in (steps, keys))
    expected = written_out(q, k, v, inv_freq.tolist(), steps, keys, list(lengths), **flags)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)


def test_only_distances_matter() -> None:
    q, k, v = torch.randn(3, 1, 5, 2, 8, dtype=torch.float64)
    inv_freq = torch.tensor([1.0, 0.1], dtype=torch.float64)
    here = rope_attention(q, k, v, inv_freq)
    there = torch.arange(100, 105)[None]
    torch.testing.assert_close(rope_attention(q, k, v, inv_freq, there, there), here)
    assert not torch.allclose(rope_attention(q, k, v, inv_freq, there), here)


@pytest.mark.parametrize(
    ("change", "kind", "fault"),
    [
        ({"q": torch.zeros(5, 2, 8)}, ValueError, "q must have shape"),
        ({"k": torch.zeros(2, 5, 2, 6)}, ValueError, "k must have shape"),
        ({"v": torch.zeros(2, 4, 2, 8)}, ValueError, "v must have shape"),
        ({"k": torch.zeros(2, 5, 3, 8), "v": torch.zeros(2, 5, 3, 8)}, ValueError, "3 key/value heads do not divide 2"),
        ({"inv_freq": torch.zeros(5)}, ValueError, "at most 4"),
        ({"inv_freq": torch.zeros(4, dtype=torch.float64)}, ValueError, "inv_freq must be float32"),
        ({"q_positions": torch.zeros(3, 5, dtype=torch.int64)}, ValueError, "q_positions must be"),
        ({"k_positions": torch.zeros(2, 5)}, TypeError, "k_positions must be int64"),
        ({"lengths": torch.zeros(3, dtype=torch.int64)}, ValueError, "lengths must be"),
        ({"window": 3}, ValueError, "window"),
        ({"window": -1, "causal": True}, ValueError, "window"),
    ],
)
def test_what_is_refused(change: dict[str, Any], kind: type[Exception], fault: str) -> None:
    plain = {"q": torch.zeros(2, 5, 2, 8), "k": torch.zeros(2, 5, 2, 8), "v": torch.zeros(2, 5, 2, 8)}
    with pytest.raises(kind, match=fault):
        rope_attention(**plain | change)
