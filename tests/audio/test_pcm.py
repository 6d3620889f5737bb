"""Raw samples from a pipe."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from media import sine

from fastspeech.audio.load import resample
from fastspeech.audio.pcm import pcm_pieces


class Pipe(io.BufferedIOBase):
    """Gives its bytes in reads of these sizes, whatever is asked for."""

    def __init__(self, data: bytes, sizes: Iterator[int]) -> None:
        self.data, self.sizes = data, sizes

    def read1(self, size: int = -1, /) -> bytes:
        size = min(size, next(self.sizes))
        given, self.data = self.data[:size], self.data[size:]
        return given


def odd_sizes() -> Iterator[int]:
    random = np.random.default_rng(0)
    while True:
        yield int(random.integers(1, 3000))


def heard(data: bytes, encoding: str, rate: int) -> np.ndarray:
    return np.concatenate(list(pcm_pieces(Pipe(data, odd_sizes()), encoding, rate, 24000)))


@pytest.mark.parametrize(("encoding", "kind", "scale"), [("s16le", "<i2", 32768), ("f32le", "<f4", 1)])
def test_samples_cut_anywhere(encoding: str, kind: str, scale: int) -> None:
    stored = (sine(440, 1.0, 24000) * scale).astype(kind)
    assert np.array_equal(heard(stored.tobytes(), encoding, 24000), stored.astype(np.float32) / np.float32(scale))


@pytest.mark.parametrize("rate", [8000, 16000, 44100, 48000])
def test_another_rate_is_resampled_as_a_whole_file_is(rate: int) -> None:
    samples = sine(440, 1.3, rate)
    pieces = heard(samples.tobytes(), "f32le", rate)
    assert abs(len(pieces) - 1.3 * 24000) <= 1
    whole = resample(samples, rate, 24000)
    assert np.abs(pieces - whole[: len(pieces)]).max() < 1e-6
    assert np.abs(pieces - sine(440, 1.3, 24000)[: len(pieces)])[200:-200].max() < 0.01


def test_half_a_sample_and_nothing() -> None:
    assert heard(b"\x00\x40\x7f", "s16le", 24000).tolist() == [0.5]
    assert list(pcm_pieces(io.BytesIO(), "s16le", 24000, 24000)) == []
    assert list(pcm_pieces(io.BytesIO(), "s16le", 8000, 24000)) == []


def test_each_piece_comes_as_soon_as_it_can_be_read() -> None:
    pieces = pcm_pieces(Pipe(bytes(2 * 4800), iter([2000] * 5)), "s16le", 24000, 24000)
    assert len(next(pieces)) == 1000
