"""Kyutai STT on the CPU against transformers: one frame heard and one token written, float32, the same weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers.models.kyutai_speech_to_text import modeling_kyutai_speech_to_text as theirs_module

import fastspeech

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


class Theirs:
    """transformers' own loop, stopped and continued: its codec with both caches, and its decoder with its own."""

    def __init__(self, model: Any, rows: int) -> None:
        self.model = model
        convs = [model.codec_model.encoder.encoder_seanet.get_submodule(name) for name in self._names()]
        convs.append(model.codec_model.encoder.downsample)
        self.padding = theirs_module.KyutaiSpeechToTextConv1dPaddingCache(
            len(convs),
            [conv.padding_total for conv in convs],
            [conv.pad_mode for conv in convs],
            [conv.in_channels for conv in convs],
        )
        self.heard = transformers.DynamicCache(config=model.config.codec_config)
        self.written = transformers.DynamicCache(config=model.config)
        self.tokens = torch.full((rows, 1), model.config.bos_token_id)

    def _names(self) -> list[str]:
        return self.model.codec_model.encoder.encoder_seanet._conv1d_layer_names

    def step(self, samples: torch.Tensor) -> torch.Tensor:
        codes = self.model.codec_model.encode(
            samples, encoder_past_key_values=self.heard, padding_cache=self.padding
        ).audio_codes
        ids = torch.cat((self.tokens[:, :, None], codes.transpose(1, 2)), 2)
        logits = self.model(input_ids=ids, past_key_values=self.written, use_cache=True).logits
        self.tokens = logits[:, -1:].argmax(-1)
        return self.tokens[:, 0]


class Ours:
    def __init__(self, model: Any, rows: int) -> None:
        self.model, self.state = model, model.start(rows)
        self.tokens = torch.full((rows,), model.config.bos_token_id)

    def step(self, samples: torch.Tensor) -> torch.Tensor:
        codes = self.model.codec_model.encode_frames(samples, self.state.codec)[..., 0]
        self.tokens = self.model.lm_head(self.model.step(self.tokens, codes, self.state)).argmax(-1)
        return self.tokens


@pytest.mark.parametrize("rows", [1, 8])
def test_step(against: Any, pair: Any, rows: int) -> None:
    """Frames at a full stride: the codec's and the decoder's windows partly filled, and growing alike on both sides."""
    ours, theirs = Ours(pair[0], rows), Theirs(pair[1], rows)
    noise = 0.1 * torch.randn(rows, 1, 400 * FRAME, generator=torch.Generator().manual_seed(1))
    frames = noise.split(FRAME, 2)
    for frame in frames[:BEFORE]:
        assert torch.equal(ours.step(frame), theirs.step(frame))
    at = {ours: BEFORE, theirs: BEFORE}

    def run(side: Ours | Theirs) -> None:
        for frame in frames[at[side] : at[side] + STEPS]:
            side.step(frame)
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
