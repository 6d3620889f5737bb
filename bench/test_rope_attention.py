"""The extension's rope_attention against its reference in PyTorch: encoders' layers, and a window."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fastspeech.kernels import rope_attention, use_backend

# frames, heads, head_dim, window
LAYERS = {
    "moonshine-tiny 3 s": (125, 8, 36, 0),
    "moonshine-tiny 30 s": (1248, 8, 36, 0),
    "moonshine-base 10 s": (416, 8, 52, 0),
    "mimi 40 s": (1000, 8, 64, 250),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layer(layer: str, against: Callable) -> None:
    frames, heads, dim, window = LAYERS[layer]
    q, k, v = torch.randn(1, frames, 3 * heads, dim).split(heads, dim=2)
    inv_freq = 1e4 ** -(torch.arange(16) / 16)

    def attend(backend: str) -> torch.Tensor:
        with use_backend(backend):
            return rope_attention(q, k, v, inv_freq, causal=window > 0, window=window)

    against(lambda: attend("cuda"), lambda: attend("reference"))
