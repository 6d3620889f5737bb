"""Raw samples from a pipe, as they come."""

from collections.abc import Iterator
from io import BufferedIOBase

import av
import numpy as np
from numpy.typing import NDArray

ENCODINGS = {"s16le": ("<i2", 32768), "f32le": ("<f4", 1)}
"""Type and full scale of mono samples, by ffmpeg's names."""

_BLOCK_S = 0.08


def pcm_pieces(file: BufferedIOBase, encoding: str, rate: int, sampling_rate: int) -> Iterator[NDArray[np.float32]]:
    """The samples of a file at `rate` Hz as float32 pieces (n,) at `sampling_rate`, each as soon as it can be read.

    Half a sample at the end is left out.

    Args:
        file: such as `sys.stdin.buffer`.
        encoding: of `ENCODINGS`.
    """
    kind, scale = ENCODINGS[encoding]
    size = np.dtype(kind).itemsize
    block = size * max(1, round(_BLOCK_S * rate))
    resampler = None if rate == sampling_rate else av.AudioResampler(format="flt", layout="mono", rate=sampling_rate)
    rest = b""
    while data := file.read1(block):
        data = rest + data
        whole = len(data) - len(data) % size
        rest = data[whole:]
        samples = np.frombuffer(data[:whole], kind).astype(np.float32) / np.float32(scale)
        if resampler is None:
            yield samples
        elif whole:
            frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
            frame.sample_rate = rate
            yield from _arrays(resampler.resample(frame))
    if resampler is not None:
        yield from _arrays(resampler.resample(None))


def _arrays(frames: list[av.AudioFrame]) -> Iterator[NDArray[np.float32]]:
    return (frame.to_ndarray()[0] for frame in frames)
