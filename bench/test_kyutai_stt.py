"""Kyutai STT on the CPU against transformers: one frame heard and one token written, float32, the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import fastspeech
from fastspeech.bench.streams import Ours, Side, Theirs

FRAME = 1920
STEPS = 5
"""Steps that are timed together, so that neither side's set-up counts."""

BEFORE = 60
"""Steps before those, which fill half of the codec's window and a sixth of the decoder's."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A decoder of 8 layers of 512, with the released codec's sizes and its 32 codebooks."""
    torch.manual_seed(0)
    config = transformers.KyutaiSpeechToTextConfig(
        hidden_size=512, num_hidden_layers=8, num_attention_heads=8, ffn_dim=2816
    )
    theirs = transformers.KyutaiSpeechToTextForConditionalGeneration(config).eval()
    theirs.generation_config.audio_window_size = 1
    theirs.generation_config._from_model_config = False
    theirs.codec_model.generation_config.use_cache = True
    with torch.no_grad():
        for name, buffer in theirs.codec_model.named_buffers():
            if name.endswith("embed_sum"):
                buffer.normal_()
    folder = tmp_path_factory.mktemp("kyutai")
    theirs.save_pretrained(folder)
    return fastspeech.KyutaiSpeechToTextForConditionalGeneration.from_pretrained(folder), theirs


@pytest.mark.parametrize("rows", [1, 8])
def test_step(against: Any, pair: Any, rows: int) -> None:
    """Frames at a full stride: the codec's and the decoder's windows partly filled, and growing alike on both sides."""
    ours, theirs = Ours(pair[0], rows, full=False), Theirs(pair[1], rows, full=False)
    noise = 0.1 * torch.randn(rows, 1, 400 * FRAME, generator=torch.Generator().manual_seed(1))
    frames = noise.split(FRAME, 2)
    for frame in frames[:BEFORE]:
        ours.samples = theirs.samples = frame
        assert ours.frame() == theirs.frame()
    at: dict[Side, int] = {ours: BEFORE, theirs: BEFORE}

    def run(side: Side) -> None:
        for frame in frames[at[side] : at[side] + STEPS]:
            side.samples = frame
            side.frame()
        at[side] += STEPS

    against(lambda: run(ours), lambda: run(theirs), rounds=7)


@pytest.mark.parametrize("rows", [1, 8])
def test_transcribe(against: Any, pair: Any, rows: int) -> None:
    """Four seconds, from samples to tokens."""
    ours, theirs = pair
    samples = 0.1 * torch.randn(rows, 1, 50 * FRAME, generator=torch.Generator().manual_seed(2))
    found, expected = ours.generate(samples), theirs.generate(input_values=samples)
    assert torch.equal(found, expected)
    against(lambda: ours.generate(samples), lambda: theirs.generate(input_values=samples), rounds=5)
