"""Long recordings are cut where transformers cuts them, and nothing is lost."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastspeech.audio.split import split_at_quiet

RATE = 1000  # the arithmetic is the same at any rate, and ten minutes are small


def reference_lengths(samples: torch.Tensor, **options: Any) -> list[int]:
    transformers = pytest.importorskip("transformers")
    extractor = transformers.CohereAsrFeatureExtractor(
        n_fft=32, win_length=25, hop_length=10, feature_size=4, **options
    )
    return [len(chunk) for chunk in extractor._split_audio_chunks_energy(samples)]


@pytest.mark.parametrize("seconds", [30.001, 34.999, 35.0, 35.001, 40.0, 70.1, 105.0, 600.0])
@pytest.mark.parametrize("kind", ["noise", "silence", "quantised"])
def test_chunks_are_those_of_transformers(seconds: float, kind: str) -> None:
    samples = torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(round(seconds)))
    if kind == "silence":
        samples = samples * 0
    elif kind == "quantised":  # windows of equal energy: the first of them counts
        samples = samples.sign() * 0.25
    options = {"sampling_rate": RATE, "min_energy_window_samples": 100}
    chunks = split_at_quiet(samples, **options)
    assert [end - start for _, start, end in chunks] == reference_lengths(samples, **options)
    assert [index for index, _, _ in chunks] == list(range(len(chunks)))


def test_the_default_numbers_are_those_of_the_released_model() -> None:
    samples = torch.randn(70 * 16000 + 1600, generator=torch.Generator().manual_seed(0))
    chunks = split_at_quiet(samples)
    assert [end - start for _, start, end in chunks] == reference_lengths(samples)
    assert len(chunks) == 3
    assert split_at_quiet(torch.zeros(40 * 16000))[0] == (0, 0, 480000)


def test_index_none_up_to_thirty_seconds_and_one_chunk_up_to_thirty_five() -> None:
    assert split_at_quiet(torch.zeros(30 * RATE), RATE) == [(None, 0, 30 * RATE)]
    assert split_at_quiet(torch.zeros(30 * RATE + 1), RATE) == [(0, 0, 30 * RATE + 1)]
    assert split_at_quiet(torch.zeros(35 * RATE), RATE) == [(0, 0, 35 * RATE)]


def test_a_pause_is_found() -> None:
    samples = torch.randn(40 * RATE, generator=torch.Generator().manual_seed(1))
    samples[32 * RATE : 32 * RATE + 100] = 0
    assert split_at_quiet(samples, RATE, min_energy_window_samples=100)[0] == (0, 0, 32 * RATE)


def test_energies_that_rounding_makes_equal_are_a_tie() -> None:
    """The root of a mean square one unit above 1/16 is 1/4, so the window of a hair more energy comes first."""
    samples = torch.ones(400)
    samples[320:322] = torch.tensor([0.25, 0.25 + 2**-25])
    samples[330:332] = 0.25
    options = {"sampling_rate": 10, "min_energy_window_samples": 2}
    assert split_at_quiet(samples, **options)[0] == (0, 0, 320)
    assert reference_lengths(samples, **options)[0] == 320


@settings(deadline=None, max_examples=60)
@given(
    total=st.integers(1, 900),
    clip=st.floats(0.5, 40),
    overlap=st.floats(0.1, 50),
    window=st.integers(1, 60),
    seed=st.integers(0, 3),
)
def test_chunks_tile_the_recording_for_any_options(
    total: int, clip: float, overlap: float, window: int, seed: int
) -> None:
    samples = torch.randn(total, generator=torch.Generator().manual_seed(seed))
    chunks = split_at_quiet(samples, 10, clip, overlap, window)
    assert chunks[0][1] == 0 and chunks[-1][2] == total
    assert all(before[2] == after[1] for before, after in pairwise(chunks))
    assert all(0 < end - start <= max(1, round(clip * 10)) for _, start, end in chunks if len(chunks) > 1)
    if chunks[0][0] is not None:
        expected = reference_lengths(
            samples,
            sampling_rate=10,
            max_audio_clip_s=clip,
            overlap_chunk_second=overlap,
            min_energy_window_samples=window,
        )
        assert [end - start for _, start, end in chunks] == expected


def test_rows_that_are_views_are_split_alike() -> None:
    wide = torch.randn(40 * RATE, 2, generator=torch.Generator().manual_seed(2))
    assert split_at_quiet(wide[:, 0], RATE, min_energy_window_samples=100) == split_at_quiet(
        wide[:, 0].contiguous(), RATE, min_energy_window_samples=100
    )
