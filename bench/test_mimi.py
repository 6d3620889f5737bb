"""Mimi's encoder on the CPU against transformers: a frame of 80 ms, and a recording, full size, float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from fastspeech.models.kyutai_stt import MimiModel

FRAME = 1920


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """kyutai/mimi's sizes: its configuration's defaults, with codebooks that are not all zeros."""
    torch.manual_seed(0)
    theirs = transformers.MimiModel(transformers.MimiConfig()).eval()
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            if name.endswith("embed_sum"):
                tensor.normal_()
    folder = tmp_path_factory.mktemp("mimi")
    theirs.save_pretrained(folder)
    return MimiModel.from_pretrained(folder), theirs


def samples(streams: int, frames: int) -> torch.Tensor:
    return 0.1 * torch.randn(streams, 1, frames * FRAME, generator=torch.Generator().manual_seed(frames))


class Theirs:
    """A stream of transformers', which keeps its caches."""

    def __init__(self, model: Any) -> None:
        self.model, self.cache, self.padding = model, None, None

    def frame(self, given: torch.Tensor) -> torch.Tensor:
        out = self.model.encode(
            given, encoder_past_key_values=self.cache, padding_cache=self.padding, use_streaming=True
        )
        self.cache, self.padding = out.encoder_past_key_values, out.padding_cache
        return out.audio_codes


@pytest.mark.parametrize("streams", [1, 8])
def test_frame(against: Any, pair: Any, streams: int) -> None:
    """One step of live streams, their windows full."""
    ours, theirs = pair
    state, stream = ours.start(streams), Theirs(theirs)
    different = total = 0
    for piece in samples(streams, 130).split(FRAME * 13, dim=2):
        found, expected = ours.encode_frames(piece, state), stream.frame(piece)
        different, total = different + int((found != expected).sum()), total + found.numel()
    # Near ties are told apart by rounding, and what follows in that frame with them.
    assert different <= 1e-3 * total
    frame = samples(streams, 1)
    against(lambda: ours.encode_frames(frame, state), lambda: stream.frame(frame), rounds=9)


@pytest.mark.parametrize("clips", [1, 8])
def test_recording(against: Any, pair: Any, clips: int) -> None:
    """2 s at once."""
    ours, theirs = pair
    given = samples(clips, 25)
    against(lambda: ours.encode(given), lambda: theirs.encode(given), rounds=3)
