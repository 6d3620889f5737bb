"""The extension's residual_vq against PyTorch: transformers' quantiser and our own reference, one Mimi frame a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import MimiConfig
from transformers.models.mimi.modeling_mimi import MimiSplitResidualVectorQuantizer

from fastspeech.kernels import residual_vq, use_backend

ROWS = (1, 8, 64)


@pytest.fixture(scope="module")
def quantiser() -> MimiSplitResidualVectorQuantizer:
    torch.manual_seed(0)
    quantiser = MimiSplitResidualVectorQuantizer(MimiConfig()).eval()
    for buffer in (b for name, b in quantiser.named_buffers() if name.endswith("embed_sum")):
        buffer.normal_(std=0.3)
    return quantiser


def parts(quantiser: Any) -> list[Any]:
    return [quantiser.semantic_residual_vector_quantizer, quantiser.acoustic_residual_vector_quantizer]


@pytest.mark.parametrize("rows", ROWS)
def test_against_transformers(rows: int, quantiser: MimiSplitResidualVectorQuantizer, against: Callable) -> None:
    frames = torch.randn(rows, 512, 1)
    weights = torch.stack([part.input_proj.weight[:, :, 0] for part in parts(quantiser)])
    codebooks = torch.stack([layer.codebook.embed for part in parts(quantiser) for layer in part.layers])
    splits = [len(part.layers) for part in parts(quantiser)]

    def ours() -> torch.Tensor:
        return residual_vq(frames[:, :, 0] @ weights.mT, codebooks, splits)

    with use_backend("cuda"):
        differing = (ours() != quantiser.encode(frames)[:, :, 0].T).float().mean()
        assert differing < 0.003
        against(ours, lambda: quantiser.encode(frames))


@pytest.mark.parametrize("rows", ROWS)
def test_against_the_reference(rows: int, against: Callable) -> None:
    latents, codebooks = torch.randn(2, rows, 256), 0.3 * torch.randn(32, 2048, 256)

    def reference() -> torch.Tensor:
        with use_backend("reference"):
            return residual_vq(latents, codebooks, [1, 31])

    with use_backend("cuda"):
        against(lambda: residual_vq(latents, codebooks, [1, 31]), reference)
