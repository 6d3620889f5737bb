"""Decoding over pages of float8_e4m3fn: how far logits move, which tokens stay, and what it takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastspeech
from fastspeech.auto import FAMILIES
from fastspeech.generation.pages import PagedCache, PagePool
from fastspeech.layers import paged
from fastspeech.parity.models import EXAMPLES, with_random_weights

ASSETS = Path(fastspeech.__file__).parent / "assets"


def read(model: Any, encoded: Tensor, ids: Tensor, **kind: Any) -> Tensor:
    """The logits after every one of the tokens ids (rows, n), one by one."""
    decoder = model.model.decoder
    steps, head = model.functions()
    pool = PagePool(len(steps), decoder.kv_heads, decoder.head_dim, 60, **kind)
    caches = [PagedCache(pool, 1, ids.shape[1], encoded.shape[1]) for _ in ids]
    paged.listen(decoder, encoded, caches)
    return torch.stack([head(paged.read(decoder, steps, token, caches)) for token in ids.split(1, dim=1)], 1)


def example(name: str, seed: int) -> tuple[Any, Tensor, Tensor]:
    """A small model with random weights, encoder frames and tokens."""
    family, made = FAMILIES[name], EXAMPLES[name]
    model = family.get(family.generator)(family.get(family.config)(**made.config))
    model = with_random_weights(model, seed).float()
    inputs = made.inputs(torch.Generator().manual_seed(seed))
    del inputs["ids"]
    inputs = {key: value.float() if value.is_floating_point() else value for key, value in inputs.items()}
    encoded = model.encode(inputs).last_hidden_state
    return model, encoded, torch.randint(3, 50, (len(encoded), 32), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "most_moved", "least_stayed"),
    [("cohere_asr", 0.02, 0.98), ("moonshine", 0.12, 0.90), ("speech_to_text", 0.04, 0.97)],
)
@torch.no_grad()
def test_logits_move_a_little_and_most_tokens_stay(name: str, most_moved: float, least_stayed: float) -> None:
    """The figures of `Engine`'s docstring, of the logits' root mean square and of the best tokens."""
    moved, stayed = [], []
    for seed in range(4):
        of_seed = example(name, seed)
        plain, rounded = read(*of_seed), read(*of_seed, dtype=torch.float8_e4m3fn)
        moved.append(((rounded - plain).norm() / plain.norm()).item())
        stayed.append((rounded.argmax(-1) == plain.argmax(-1)).float().mean().item())
    assert 0 < sum(moved) / len(moved) < most_moved
    assert sum(stayed) / len(stayed) > least_stayed


@torch.no_grad()
def test_scales_reach_every_layer() -> None:
    """Over scales that are powers of two nothing changes but the exponents that are stored."""
    model, encoded, ids = example("moonshine", 0)
    decoder = model.model.decoder
    scales = 2.0 ** torch.randint(-3, 4, (len(decoder.layers), 2, decoder.kv_heads)).float()
    torch.testing.assert_close(read(model, encoded, ids, scales=scales), read(model, encoded, ids))


def test_an_engine_with_pages_of_8_bits() -> None:
    """The demo checkpoint's words, and four times the pages of float32 in as much memory."""
    processor = fastspeech.AutoProcessor.from_pretrained(ASSETS)
    model = fastspeech.AutoModelForSpeechSeq2Seq.from_pretrained(ASSETS)
    held = {}
    for kind in ("auto", "fp8"):
        with fastspeech.Engine(model, processor, memory=1 << 22, kv_cache_dtype=kind) as engine:
            engine.pool.grow(300)
            for side in (engine.pool.keys, engine.pool.values):
                side.zero_()
            text = engine.submit(ASSETS / "sample.flac").result().text
            assert text.strip() == (ASSETS / "sample.txt").read_text().strip()
            held[kind] = engine._most_pages
            stored = torch.cat([engine.pool.keys.float(), engine.pool.values.float()])
            assert engine.pool.keys.itemsize == (1 if kind == "fp8" else 4)
        assert engine.pool.in_use == engine.pool.reserved == 0
    assert held["fp8"] // 4 == held["auto"]
    sizes = stored[stored != 0].abs()
    assert sizes.max() < 448
    assert (sizes < 2.0**-6).float().mean() < 0.1
    with pytest.raises(ValueError, match="kv_cache_dtype is 'auto' or 'fp8', not 'int4'"):
        fastspeech.Engine(model, processor, kv_cache_dtype="int4")
