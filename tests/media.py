"""Small media files, written with PyAV for the tests that read them."""

import io
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
from av.audio import AudioStream
from numpy.typing import NDArray

# Container, codec and rate of each kind of file; every one is in the PyAV wheels.
KINDS = {
    "wav": ("wav", "pcm_s16le", 44100),
    "flac": ("flac", "flac", 44100),
    "aiff": ("aiff", "pcm_s16be", 22050),
    "mp3": ("mp3", "libmp3lame", 44100),
    "ogg": ("ogg", "libopus", 48000),
    "m4a": ("ipod", "aac", 44100),
    "mka": ("matroska", "aac", 44100),
    "webm": ("webm", "libopus", 48000),
}


def sine(hz: float, seconds: float, rate: int, level: float = 0.5) -> NDArray[np.float32]:
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def encode(
    channels: NDArray[np.float32],
    rate: int,
    container: str = "wav",
    codec: str = "pcm_s16le",
    picture: bool = False,
    options: dict[str, str] | None = None,
    bit_rate: int = 128000,
) -> bytes:
    """Samples (channels, n) as a media file, behind a video stream of one `picture`; no audio stream of 0 channels."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, container_options=options or {}) as output:
        video = output.add_stream("mpeg4", rate=5, width=32, height=32, pix_fmt="yuv420p") if picture else None
        layout = {0: "", 1: "mono", 2: "stereo", 6: "5.1"}[len(channels)]
        audio = cast(AudioStream, output.add_stream(codec, rate=rate, layout=layout)) if layout else None
        if audio is not None:
            audio.bit_rate = bit_rate
        if video is not None:
            black = av.VideoFrame(32, 32, "yuv420p")
            black.pts, black.time_base = 0, Fraction(1, 5)
            output.mux([*video.encode(black), *video.encode(None)])
        if audio is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(channels), format="fltp", layout=layout)
            frame.sample_rate = rate
            converter = av.AudioResampler(format=audio.format, layout=layout, rate=rate)
            for part in [*converter.resample(frame), *converter.resample(None)]:
                output.mux(audio.encode(part))
            output.mux(audio.encode(None))
    return file.getvalue()


def example(kind: str, seconds: float = 2.0) -> bytes:
    """A 440 Hz sine with a little noise, of level 0.5 on the left and 0.25 on the right."""
    container, codec, rate = KINDS[kind]
    noise = np.random.default_rng(0).standard_normal(round(seconds * rate)).astype(np.float32)
    left = sine(440, seconds, rate) + 0.01 * noise
    return encode(np.stack([left, left / 2]), rate, container, codec)


def save(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path
