"""load_audio: whatever ffmpeg reads becomes the right samples, and whatever is broken a clear error."""

import io
import threading
import wave
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media import KINDS, encode, example, save, sine
from numpy.typing import NDArray

import fastspeech.audio.source
from fastspeech import AudioError, load_audio
from fastspeech.audio.load import _Mixer, resample

RECORDINGS = Path(__file__).parents[2] / "../shared/data/audio"


def tone(samples: NDArray[np.float32], rate: int = 16000) -> tuple[float, float]:
    """Frequency and level of the strongest sine, over whole seconds."""
    middle = samples[: len(samples) // rate * rate]
    spectrum = np.abs(np.fft.rfft(middle)) / (len(middle) / 2)
    peak = int(spectrum.argmax())
    return peak * rate / len(middle), float(spectrum[peak])


class Unseekable(io.RawIOBase):
    """A pipe or a response: bytes that can be read once."""

    def __init__(self, data: bytes) -> None:
        self.data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self.data.read(size)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_from_every_kind_of_source(kind: str, tmp_path: Path) -> None:
    data = example(kind)
    samples = load_audio(data)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert 2.0 <= len(samples) / 16000 < 2.06
    hz, level = tone(samples)
    # LAME encodes at 0.95 of the level; (0.5 + 0.25) / 2 is the mean of the channels.
    assert hz == 440 and level == pytest.approx(0.375 * (0.95 if kind == "mp3" else 1), rel=0.02)
    path = save(tmp_path / f"a.{kind}", data)
    open_file = io.BytesIO(data)
    open_file.seek(100)  # left there by whoever wrote it
    for source in (path, str(path), bytearray(data), open_file, path.open("rb"), Unseekable(data)):
        np.testing.assert_array_equal(load_audio(source), samples)
    assert not open_file.closed


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000])
@pytest.mark.parametrize("hz", [100, 1000, 3000])
def test_a_sine_survives_resampling(rate: int, hz: int) -> None:
    samples = load_audio(encode(sine(hz, 1.01, rate)[None], rate, codec="pcm_f32le"))
    assert len(samples) == int(np.ceil(round(1.01 * rate) * 16000 / rate))
    expected = sine(hz, 2, 16000)[: len(samples)]
    edge = 200  # where the filter reaches beyond the sound
    np.testing.assert_allclose(samples[edge:-edge], expected[edge:-edge], atol=1e-4)


def test_what_the_new_rate_cannot_hold_is_removed() -> None:
    assert np.abs(load_audio(encode(sine(12000, 1, 48000)[None], 48000))[200:-200]).max() < 1e-3


def test_other_rates_and_arrays() -> None:
    data = encode(sine(1000, 1, 16000)[None], 16000, codec="pcm_f32le")
    assert tone(load_audio(data, sampling_rate=24000), 24000) == (1000, pytest.approx(0.5, rel=1e-3))
    np.testing.assert_array_equal(load_audio(data, sampling_rate=24000), resample(sine(1000, 1, 16000), 16000, 24000))


@pytest.mark.parametrize(("codec", "exact"), [("pcm_f32le", 1e-7), ("pcm_s16le", 1e-4)])
@pytest.mark.parametrize("levels", [[0.8, 0.4], [0.5, -0.5], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])
def test_channels_are_averaged(codec: str, exact: float, levels: list[float]) -> None:
    channels = np.stack([sine(1000, 0.5, 16000, level) for level in levels])
    samples = load_audio(encode(channels, 16000, codec=codec))
    np.testing.assert_allclose(samples, channels.mean(0), atol=exact)


def test_the_sound_of_a_video() -> None:
    data = encode(sine(440, 2, 44100)[None], 44100, "mp4", "aac", picture=True)
    assert tone(load_audio(data)) == (440, pytest.approx(0.5, rel=0.02))


def test_joined_mp3s_are_read_to_the_end() -> None:
    data = example("mp3")
    assert b"ID3" in data
    assert len(load_audio(data + data)) == pytest.approx(2 * 32000, abs=1000)


@pytest.mark.parametrize("tail", [b"TAG" + bytes(125), bytes(3000), b"words " * 100])
@pytest.mark.parametrize("kind", ["mp3", "wav", "m4a"])  # FLAC only since ffmpeg 8; before, it is a loud error
def test_foreign_data_behind_the_sound_is_ignored(kind: str, tail: bytes) -> None:
    samples = load_audio(example(kind) + tail)
    assert len(samples) == pytest.approx(len(load_audio(example(kind))), abs=400)


def test_a_stream_whose_format_changes_is_mixed_to_the_end() -> None:
    mixer = _Mixer(16000)
    for rate, layout in ((44100, "stereo"), (48000, "mono"), (44100, "stereo")):
        channels = np.stack([sine(440, 1, rate)] * (2 if layout == "stereo" else 1))
        frame = av.AudioFrame.from_ndarray(channels, format="fltp", layout=layout)
        frame.sample_rate = rate
        mixer.add(frame)
    samples = mixer.finish()
    assert len(samples) == 48000
    for second in (0, 16000, 32000):
        assert tone(samples[second : second + 16000]) == (440, pytest.approx(0.5, rel=1e-2))


def test_jfk() -> None:
    path = RECORDINGS / "jfk.flac"
    if not path.exists():
        pytest.skip("the shared recordings are not beside this checkout")
    samples = load_audio(path)
    assert len(samples) == 11 * 16000 and 0.5 < np.abs(samples).max() < 1


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    without_samples = io.BytesIO()
    with wave.open(without_samples, "wb") as header:
        header.setparams((1, 2, 16000, 0, "NONE", ""))
    with pytest.raises(AudioError, match=r"nowhere\.wav: cannot be opened: No such file"):
        load_audio(tmp_path / "nowhere.wav")
    with pytest.raises(AudioError, match="cannot be opened: Is a directory"):
        load_audio(tmp_path)
    with pytest.raises(AudioError, match=r"zero\.wav: the file is empty \(0 bytes\)"):
        load_audio(save(tmp_path / "zero.wav", b""))
    with pytest.raises(AudioError, match=r"notes\.txt: no audio stream \(ffmpeg takes it for tty"):
        load_audio(save(tmp_path / "notes.txt", b"words, not sounds\n" * 50))
    with pytest.raises(AudioError, match=r"page\.html: not a media file"):
        load_audio(save(tmp_path / "page.html", b"<p>words, not sounds</p>\n" * 50))
    with pytest.raises(AudioError, match="<200 bytes>: not a media file"):
        load_audio(np.random.default_rng(0).bytes(200))
    with pytest.raises(AudioError, match="holds no samples"):
        load_audio(without_samples.getvalue())


def test_a_video_without_sound() -> None:
    with pytest.raises(AudioError, match=r"no audio stream \(ffmpeg takes it for avi with video in it\)"):
        load_audio(encode(np.zeros((0, 0), np.float32), 44100, "avi", "pcm_s16le", picture=True))


@pytest.mark.parametrize("source", [None, 5, np.zeros(16000), ["a.wav"]])
def test_what_is_no_source_is_a_type_error(source: Any) -> None:
    with pytest.raises(TypeError, match="audio must be a path"):
        load_audio(source)


def test_a_text_mode_file_is_a_type_error(tmp_path: Path) -> None:
    with open(save(tmp_path / "a.wav", b"RIFF")) as file, pytest.raises(TypeError, match="open it with mode 'rb'"):
        load_audio(file)  # type: ignore[arg-type]


def test_a_rate_must_be_positive() -> None:
    with pytest.raises(ValueError, match="positive number of Hz, not 0"):
        load_audio(example("wav"), sampling_rate=0)


@pytest.mark.parametrize("part", [0.3, 0.6, 0.85])
@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_an_error(kind: str, part: float, tmp_path: Path) -> None:
    data = example(kind)
    path = save(tmp_path / f"cut.{kind}", data[: int(len(data) * part)])
    with pytest.raises(AudioError, match=rf"cut\.{kind}: (truncated|corrupt|not a media file)"):
        load_audio(path)


def test_a_truncated_wav_with_a_chunk_of_odd_length_is_an_error() -> None:
    data = example("wav")
    at = data.index(b"data")
    data = data[:at] + b"note" + (3).to_bytes(4, "little") + b"odd\0" + data[at:]
    assert len(load_audio(data)) == 32000
    with pytest.raises(AudioError, match="truncated"):
        load_audio(data[:-100])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 352000))
def test_a_wav_that_lacks_any_byte_is_an_error(missing: int) -> None:
    data = example("wav")
    with pytest.raises(AudioError, match="truncated"):
        load_audio(data[:-missing])


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3", "mka", "webm"])
def test_damage_in_the_middle_is_an_error(kind: str) -> None:
    data = bytearray(example(kind))
    middle = len(data) // 2
    data[middle : middle + 400] = np.random.default_rng(1).bytes(400)
    with pytest.raises(AudioError, match="corrupt"):
        load_audio(data)


def test_an_ogg_without_one_of_its_pages_is_an_error() -> None:
    data = example("ogg", seconds=4)
    pages = [b"OggS" + page for page in data.split(b"OggS")[1:]]
    assert len(pages) > 5
    with pytest.raises(AudioError, match="corrupt: Ogg pages are missing before byte"):
        load_audio(b"".join(pages[:3] + pages[4:]))
    with pytest.raises(AudioError, match="corrupt: no Ogg page at byte"):
        load_audio(b"".join([*pages[:3], b"junk" * 9, *pages[3:]]))


@settings(deadline=None, max_examples=150)
@given(kind=st.sampled_from(sorted(KINDS)), at=st.floats(0, 1), seed=st.integers(0, 9))
def test_damage_anywhere_ends_in_samples_or_an_error_of_ours(kind: str, at: float, seed: int) -> None:
    data = bytearray(example(kind, seconds=0.3))
    start = int(at * (len(data) - 8))
    data[start : start + 8] = np.random.default_rng(seed).bytes(8)
    with suppress(AudioError):
        assert load_audio(data).ndim == 1


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_an_open_ended_wav_from_a_pipe_is_whole(size: int) -> None:
    data = bytearray(example("wav"))
    at = data.index(b"data") + 4
    data[at : at + 4] = size.to_bytes(4, "little")
    assert len(load_audio(data)) == 32000


def test_chunks_behind_a_wavs_samples_are_no_sound() -> None:
    data = example("wav") + b"LIST" + (4).to_bytes(4, "little") + b"INFO"
    assert len(load_audio(data)) == 32000


def test_an_mp3_that_states_no_length_is_read() -> None:
    """Where the bit rate grows, ffmpeg's guess of the length is far too long, and must not be held against the file."""
    plain = {"write_xing": "0", "id3v2_version": "0"}
    parts = [
        encode(sine(440, 3, 44100)[None], 44100, "mp3", "libmp3lame", False, plain, rate) for rate in (32000, 256000)
    ]
    with av.open(io.BytesIO(b"".join(parts))) as container:
        assert container.duration is not None and container.duration / av.time_base > 20
    samples = load_audio(b"".join(parts), max_duration_s=10)
    assert len(samples) / 16000 == pytest.approx(6, abs=0.2)


def test_text_tags_in_old_encodings_do_no_harm() -> None:
    data = example("mka")
    assert len(load_audio(data.replace(b"Lavf", b"L\xe4vf"))) == len(load_audio(data))


def test_a_recording_that_is_too_long_is_refused_before_and_while_decoding() -> None:
    with pytest.raises(AudioError, match=r"longer than 1\.5 s; cut it, or raise max_duration_s"):
        load_audio(example("flac"), max_duration_s=1.5)
    plain = encode(sine(440, 2, 44100)[None], 44100, "mp3", "libmp3lame", options={"write_xing": "0"})
    with pytest.raises(AudioError, match=r"longer than 1\.5 s"):
        load_audio(plain, max_duration_s=1.5)


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile '{}'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\nfile://{}\n#EXT-X-ENDLIST\n",
    ],
)
def test_a_playlist_opens_no_other_file(text: str, tmp_path: Path) -> None:
    secret = save(tmp_path / "secret.aac", encode(sine(440, 2, 44100)[None], 44100, "adts", "aac"))
    for name, mention in (("list.m3u8", secret), ("list.ffconcat", secret.name)):
        path = save(tmp_path / name, text.format(mention).encode())
        with pytest.raises(AudioError, match="not a media file"):
            load_audio(path)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    whole = example("flac")
    secret = save(tmp_path / "secret.flac", whole)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/missing":
                self.send_error(404)
                return
            if self.path == "/redirect":
                self.send_response(302)
                self.send_header("Location", secret.as_uri())
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[: 50000 if self.path == "/broken" else None])

        def log_message(self, *args: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


def test_urls(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    np.testing.assert_array_equal(load_audio(f"{server}/a.flac", timeout=10), load_audio(example("flac")))
    with pytest.raises(AudioError, match=f"{server}/missing: the server answered 404"):
        load_audio(f"{server}/missing")
    with pytest.raises(AudioError, match="broke off after 50000 of"):
        load_audio(f"{server}/broken")
    with pytest.raises(AudioError, match="/redirect: the server answered 302"):
        load_audio(f"{server}/redirect")
    with pytest.raises(AudioError, match="cannot be downloaded"):
        load_audio("http://127.0.0.1:9/nobody-listens")
    monkeypatch.setattr(fastspeech.audio.source, "_MAX_SPOOLED_BYTES", 1000)
    with pytest.raises(AudioError, match=r"/a\.flac: more than"):
        load_audio(f"{server}/a.flac")
