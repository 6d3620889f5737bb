"""Mimi's encoder against transformers, offline and as streams; streams that come and go, each as if it were alone."""

import random
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from tiny_kyutai import CODEC, checkpoint_names, hf_codec

from fastspeech.models.kyutai_stt import MimiConfig, MimiModel
from fastspeech.models.kyutai_stt.mimi import MimiState

FRAME = 64
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {},
    # A projection before each quantiser, and as many semantic levels as acoustic ones.
    "projected": {"hidden_size": 32, "num_semantic_quantizers": 4},
    # Keys and values that heads share, biases, other taps, and a window of an odd number of latents.
    "odd": {
        "num_attention_heads": 4,
        "head_dim": 6,
        "attention_bias": True,
        "kernel_size": 5,
        "residual_kernel_size": 4,
        "last_kernel_size": 2,
        "compress": 4,
        "sliding_window": 5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
    },
    "a long window": {"sliding_window": 250},
}


@cache
def pair(name: str = "tiny") -> tuple[transformers.MimiModel, MimiModel]:
    """Both libraries' models with the same weights; not to be changed."""
    theirs = hf_codec(**SHAPES[name])
    return theirs, ours_of(theirs, name)


def ours_of(theirs: transformers.MimiModel, name: str) -> MimiModel:
    ours = MimiModel(MimiConfig(**(CODEC | SHAPES[name])))
    ours.load_state_dict(checkpoint_names(theirs))
    return ours.eval()


def audio(rows: int, samples: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 1, samples, generator=torch.Generator().manual_seed(seed))


def offline(model: Any, samples: torch.Tensor, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.encode(samples, **options).audio_codes


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("samples", [1, FRAME - 1, FRAME, FRAME + 1, 10 * FRAME, 1003, 4 * 1003])
def test_recordings_have_transformers_codes(name: str, samples: int) -> None:
    theirs, ours = pair(name)
    given = audio(3, samples)
    expected, found = offline(theirs, given), offline(ours, given)
    assert found.shape == expected.shape == (3, 8, -(-samples // FRAME))
    assert (found != expected).sum() == 0
    assert found.unique().numel() > 4


@pytest.mark.parametrize("name", SHAPES)
def test_latents_are_transformers(name: str) -> None:
    """What codes are chosen by: a fault too small to change one shows here."""
    theirs, ours = pair(name)
    given = audio(2, 160 * FRAME)
    with torch.no_grad():
        expected = theirs.encoder(given).latents.transpose(1, 2)
        state = ours.start(2, frames=160)
        found = ours._latents(given, state, None)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_recording_of_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = pair("odd")
    given = audio(3, 50 * FRAME - 7)
    expected = offline(theirs, given)
    for piece in (1, 9, 32, 1000):
        monkeypatch.setattr("fastspeech.models.kyutai_stt.mimi._PIECE", piece)
        assert torch.equal(offline(ours, given), expected)


@pytest.mark.parametrize("levels", [1, 3, 4, 5, 8])
def test_the_first_levels_alone(levels: int) -> None:
    given = audio(2, 5 * FRAME)
    for name in ("tiny", "projected"):
        theirs, ours = pair(name)
        if levels >= ours.config.num_semantic_quantizers:
            expected = offline(theirs, given, num_quantizers=levels)
            assert torch.equal(offline(ours, given, num_quantizers=levels), expected)


def test_encoded_length() -> None:
    theirs, ours = pair()
    lengths = torch.arange(1, 5 * FRAME)
    assert torch.equal(ours.get_encoded_length(lengths), theirs.get_encoded_length(lengths))
    assert ours.get_encoded_length(129) == 3


def pieces(samples: torch.Tensor, frames: int) -> tuple[torch.Tensor, ...]:
    return samples.split(frames * FRAME, dim=2)


def streamed_by_transformers(theirs: transformers.MimiModel, samples: torch.Tensor, frames: int) -> torch.Tensor:
    """With its padding cache, and the cache of keys and values that it makes itself."""
    codes, cache, padding = [], None, None
    for piece in pieces(samples, frames):
        with torch.no_grad():
            out = theirs.encode(piece, encoder_past_key_values=cache, padding_cache=padding, use_streaming=True)
        cache, padding = out.encoder_past_key_values, out.padding_cache
        codes.append(out.audio_codes)
    return torch.cat(codes, dim=2)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("frames", [1, 3, 20])
def test_streams_have_transformers_codes(name: str, frames: int) -> None:
    theirs, ours = pair(name)
    # Past 250 latents where the window is as long.
    given = audio(2, FRAME * 140)
    state = ours.start(2)
    found = torch.cat([ours.encode_frames(piece, state) for piece in pieces(given, frames)], dim=2)
    assert (found != streamed_by_transformers(theirs, given, frames)).sum() == 0
    assert (found != offline(theirs, given)).sum() == 0
    assert state.positions.tolist() == [280, 280]


def test_room_for_more_frames_changes_nothing() -> None:
    ours = pair()[1]
    given, codes = audio(1, 30 * FRAME), []
    for room in (1, 2, 10):
        state = ours.start(1, frames=room)
        assert state.frames >= room
        codes.append(ours.encode_frames(given, state))
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[0], codes[2])


def poison(state: MimiState, slot: int) -> None:
    """Leave nothing in a slot's memory that could be used."""
    state.pasts[slot] = float("nan")
    state.positions[slot] = 12345
    for side in (side for pair in state.pages for side in pair):
        side[slot] = float("nan")


@pytest.mark.parametrize("seed", range(8))
def test_streams_join_leave_and_restart(seed: int) -> None:
    """Every stream has the codes it has alone; slots that are not named stay as they are, bit for bit."""
    draw = random.Random(seed)
    ours = pair("odd" if seed % 2 else "tiny")[1]
    state = ours.start(4, frames=2)
    for slot in range(4):
        poison(state, slot)
    open_streams: dict[int, tuple[torch.Tensor, list[torch.Tensor]]] = {}
    finished = 0
    for step in range(60):
        for slot in range(4):
            if slot not in open_streams and draw.random() < 0.3:
                state.reset(torch.tensor([slot]))
                open_streams[slot] = audio(1, FRAME * draw.randint(1, 24), seed=100 * seed + step), []
        chosen = draw.sample(sorted(open_streams), draw.randint(0, len(open_streams)))
        if not chosen:
            continue
        done = {slot: sum(codes.shape[2] for codes in open_streams[slot][1]) for slot in chosen}
        left = min(open_streams[slot][0].shape[2] // FRAME - done[slot] for slot in chosen)
        frames = draw.randint(1, min(left, 5))
        rows = [open_streams[slot][0][..., done[slot] * FRAME : (done[slot] + frames) * FRAME] for slot in chosen]
        others = [slot for slot in range(4) if slot not in chosen]
        before = [tensor[others].clone() for tensor in memory(state)]
        codes = ours.encode_frames(torch.cat(rows), state, torch.tensor(chosen))
        for tensor, kept in zip(memory(state), before, strict=True):
            assert torch.equal(tensor[others].nan_to_num(7.0), kept.nan_to_num(7.0))
        for slot, row in zip(chosen, codes, strict=True):
            samples, found = open_streams[slot]
            found.append(row[None])
            if done[slot] + frames == samples.shape[2] // FRAME:
                assert torch.equal(torch.cat(found, dim=2), offline(ours, samples))
                del open_streams[slot]
                poison(state, slot)
                finished += 1
    assert finished > 5


def memory(state: MimiState) -> list[torch.Tensor]:
    return [state.pasts, state.positions, *(side for pair in state.pages for side in pair)]


def test_all_streams_begin_again() -> None:
    ours = pair()[1]
    state, given = ours.start(2), audio(2, 6 * FRAME)
    first = ours.encode_frames(given, state)
    assert not torch.equal(ours.encode_frames(given, state), first)
    state.reset()
    assert torch.equal(ours.encode_frames(given, state), first)


def test_a_state_made_in_inference_mode_serves_outside_it() -> None:
    ours = pair()[1]
    with torch.inference_mode():
        state = ours.start(1)
        ours.encode_frames(audio(1, FRAME), state)
    ours.encode_frames(audio(1, FRAME), state)


@pytest.mark.parametrize(
    ("shape", "slots", "what"),
    [
        ((2, 1, FRAME + 1), None, "whole frames of 64, got 65"),
        ((2, 1, 0), None, "whole frames of 64, got 0"),
        ((2, 2, FRAME), None, r"\(2, 1, samples\), got \(2, 2, 64\)"),
        ((3, 1, FRAME), None, r"\(2, 1, samples\), got \(3, 1, 64\)"),
        ((2, 1, FRAME), [1], r"\(1, 1, samples\), got \(2, 1, 64\)"),
        ((2, FRAME), None, r"\(2, 1, samples\), got \(2, 64\)"),
    ],
)
def test_frames_that_do_not_fit(shape: tuple[int, ...], slots: list[int] | None, what: str) -> None:
    ours = pair()[1]
    state = ours.start(2)
    with pytest.raises(ValueError, match=what):
        ours.encode_frames(torch.zeros(shape), state, None if slots is None else torch.tensor(slots))


def test_recordings_that_do_not_fit() -> None:
    ours = pair()[1]
    for shape in ((1, 640), (1, 2, 640), (1, 1, 0)):
        with pytest.raises(ValueError, match="input_values must be"):
            ours.encode(torch.zeros(shape))
    for levels in (0, 9):
        with pytest.raises(ValueError, match="from 1 to 8"):
            ours.encode(torch.zeros(1, 1, 640), num_quantizers=levels)
    assert ours.encode(torch.zeros(1, 1, 640), return_dict=False)[0].shape == (1, 8, 10)
