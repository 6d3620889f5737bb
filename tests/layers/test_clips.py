"""Batches that are encoded clip by clip."""

import torch

from fastspeech.generation.interface import Record
from fastspeech.layers.clips import by_clip, one_by_one


def test_clips_are_cut_to_their_lengths_and_padded_again() -> None:
    x = torch.randn(4, 6, 3)
    seen = []

    def run(clip: torch.Tensor) -> torch.Tensor:
        seen.append(clip.shape[1])
        return 2 * clip

    found = by_clip(x.split(1), torch.tensor([6, 2, 0, 5]), 6, run)
    assert seen == [6, 2, 5]
    inside = (torch.arange(6) < torch.tensor([6, 2, 0, 5])[:, None])[..., None]
    assert torch.equal(found, torch.where(inside, 2 * x, 0.0))
    assert torch.equal(by_clip(x.split(1), None, 6, run), 2 * x)


def test_only_plain_inference_of_several_clips_on_the_cpu_is_clip_by_clip() -> None:
    audio = torch.randn(2, 100)
    assert not one_by_one(audio, Record(), False)
    with torch.no_grad():
        assert one_by_one(audio, Record(), False)
        assert not one_by_one(audio[:1], Record(), False)
        assert not one_by_one(audio, Record(), True)
        assert not one_by_one(audio, Record(with_states=True), False)
        assert not one_by_one(audio, Record(with_weights=True), False)
        assert not one_by_one(audio.to("meta"), Record(), False)
