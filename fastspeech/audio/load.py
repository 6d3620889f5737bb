"""Any media file, as mono float32 samples at the rate a model wants."""

from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from numpy.typing import NDArray

from fastspeech.audio.intact import damage, stated_slack
from fastspeech.audio.source import Source, open_source, source_name
from fastspeech.errors import AudioError


def load_audio(
    audio: Source,
    sampling_rate: int = 16000,
    timeout: float | None = 30.0,
    max_duration_s: float = 6 * 3600.0,
) -> NDArray[np.float32]:
    """The first audio stream of a media file, mixed to mono and resampled.

    Args:
        audio: a path, an http(s) URL, the file's bytes, or a binary file object, which is read from its beginning.
            Any container and codec that ffmpeg reads, videos included.
        sampling_rate: of the result, in Hz.
        timeout: seconds a URL's server may stay silent; None waits for ever.
        max_duration_s: the longest sound that is accepted. It bounds the memory used, whatever a file claims.

    Returns:
        float32 samples (n,), nominally in [-1, 1]; channels are averaged. n is seconds * sampling_rate, rounded up or
        down.

    Raises:
        AudioError: the source is missing, empty, not media, without sound, too long, corrupt or truncated. Sound is
            never silently shortened: a decoding error, a hole or a missing end is an error. (Damage that a format
            has no checksum for cannot be told, nor a missing end where it states no length.)
        TypeError: the source is of none of the kinds above.
    """
    if sampling_rate < 1:
        raise ValueError(f"sampling_rate must be a positive number of Hz, not {sampling_rate}")
    name = source_name(audio)
    with open_source(audio, timeout) as file:
        try:
            # Nothing but `file` may be opened: a playlist or reference in it could name any file or address.
            options = {"protocol_whitelist": "none"}
            with av.open(file, "r", options=options, metadata_errors="replace") as container:
                samples = _decode(container, file, name, sampling_rate, max_duration_s)
        except av.FFmpegError as error:
            raise AudioError(f"{name}: not a media file that can be read ({error.strerror})") from error
    if samples.size == 0:
        raise AudioError(f"{name}: the audio stream holds no samples")
    return samples


def resample(samples: NDArray[np.float32], rate: int, sampling_rate: int) -> NDArray[np.float32]:
    """Mono float32 samples (n,), n > 0, at `rate` Hz, resampled: about n * sampling_rate / rate of them."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format="fltp", layout="mono")
    frame.sample_rate = rate
    mixer = _Mixer(sampling_rate)
    mixer.add(frame)
    return mixer.finish()


def _decode(
    container: InputContainer, file: BinaryIO, name: str, sampling_rate: int, max_duration_s: float
) -> NDArray[np.float32]:
    if not container.streams.audio:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise AudioError(f"{name}: no audio stream (ffmpeg takes it for {container.format.name} with {kinds} in it)")
    stream = container.streams.audio[0]
    position = file.tell()
    fault = damage(file, container.format.name)
    slack = stated_slack(file, container.format.name)
    file.seek(position)
    if fault is not None:
        raise AudioError(f"{name}: {fault}")
    stated = _stated_duration(container) if slack is not None else None
    least = None if stated is None or slack is None else stated - slack
    if stated is not None and stated > max_duration_s:
        raise _too_long(name, max_duration_s)

    mixer = _Mixer(sampling_rate)
    seconds = 0.0
    try:
        for packet in container.demux(stream):
            # An open-ended WAV's last packet is always marked: its length was never known.
            if packet.is_corrupt and container.format.name != "wav":
                raise AudioError(f"{name}: corrupt: a damaged packet after {seconds:.2f} s")
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                # No sound is lost with foreign data behind what the header promised, nor with the tag of a second MP3
                # that was appended to a first.
                if bytes(packet)[:3] != b"ID3" and (least is None or seconds < least):
                    raise
                continue
            for frame in frames:
                seconds += frame.samples / frame.sample_rate
                if seconds > max_duration_s:
                    raise _too_long(name, max_duration_s)
                mixer.add(frame)
    except av.FFmpegError as error:
        raise AudioError(f"{name}: corrupt: decoding failed after {seconds:.2f} s ({error.strerror})") from error
    if stated is not None and least is not None and seconds < least:
        raise AudioError(f"{name}: truncated or corrupt: {seconds:.2f} s of {stated:.2f} s could be decoded")
    return mixer.finish()


def _stated_duration(container: InputContainer) -> float | None:
    stream = container.streams.audio[0]
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if container.duration is None or len(container.streams) > 1:
        return None  # a container's duration is its longest stream's
    return container.duration / av.time_base - max(0.0, (container.start_time or 0) / av.time_base)


def _too_long(name: str, max_duration_s: float) -> AudioError:
    return AudioError(f"{name}: longer than {max_duration_s:g} s; cut it, or raise max_duration_s")


class _Mixer:
    """Collects frames as mono float32 at one rate.

    Channels are averaged here, not by ffmpeg, whose mono mix of floating-point stereo is sqrt(2) louder than the mean.
    """

    def __init__(self, sampling_rate: int) -> None:
        self.sampling_rate = sampling_rate
        self.blocks: list[NDArray[np.float32]] = []
        self.resampler: av.AudioResampler | None = None
        self.shape: tuple[str, str, int] | None = None

    def add(self, frame: av.AudioFrame) -> None:
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self.resampler is None or shape != self.shape:
            self._flush()
            self.resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=self.sampling_rate)
            self.shape = shape
        frame.pts = None
        self._collect(self.resampler.resample(frame))

    def finish(self) -> NDArray[np.float32]:
        self._flush()
        return np.concatenate(self.blocks) if self.blocks else np.zeros(0, np.float32)

    def _flush(self) -> None:
        if self.resampler is not None:
            self._collect(self.resampler.resample(None))

    def _collect(self, frames: list[av.AudioFrame]) -> None:
        self.blocks.extend(frame.to_ndarray().mean(axis=0, dtype=np.float32) for frame in frames)
