"""The extension's paged_attention and page_append against their references in PyTorch, a decoding step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastspeech.kernels import page_append, paged_attention, use_backend

# tokens, heads, head_dim, slots of the ring, window
RINGS = {
    "kyutai 1B": (1, 16, 128, 768, 750),
    "kyutai 2.6B": (1, 32, 64, 384, 375),
    "mimi": (2, 8, 64, 256, 250),
}


@pytest.mark.parametrize("rows", [1, 8])
@pytest.mark.parametrize("model", RINGS)
def test_ring(model: str, rows: int, against: Callable) -> None:
    tokens, heads, dim, slots, window = RINGS[model]
    keys, values = (torch.randn(rows, heads, slots, dim) for _ in range(2))
    q, k, v = (torch.randn(rows, tokens, heads, dim) for _ in range(3))
    positions, inv_freq = torch.full((rows,), 5000), 1e4 ** -(torch.arange(dim // 2) / (dim // 2))

    def step(backend: str) -> torch.Tensor:
        with use_backend(backend):
            page_append(k, v, keys, values, None, positions, inv_freq=inv_freq)
            return paged_attention(q, keys, values, None, positions, inv_freq, window=window)

    against(lambda: step("cuda"), lambda: step("reference"))


@pytest.mark.parametrize("tokens", [1, 60])
def test_pages(tokens: int, against: Callable) -> None:
    rows, heads, dim, columns = 8, 8, 52, 13
    keys, values = (torch.randn(rows * columns, heads, 16, dim) for _ in range(2))
    table = torch.randperm(rows * columns).to(torch.int32).view(rows, columns)
    q, k, v = (torch.randn(rows, tokens, heads, dim) for _ in range(3))
    positions, inv_freq = torch.full((rows,), 0 if tokens > 1 else 150), 1e4 ** -(torch.arange(23) / 23)

    def step(backend: str) -> torch.Tensor:
        with use_backend(backend):
            page_append(k, v, keys, values, table, positions, inv_freq=inv_freq, interleaved=True)
            return paged_attention(q, keys, values, table, positions, inv_freq, interleaved=True)

    against(lambda: step("cuda"), lambda: step("reference"))
