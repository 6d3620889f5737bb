"""The formats a transcript is written in: times, escapes, what is left out."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastspeech.transcripts import FORMATS, Segment, Transcript, to_json, to_srt, to_txt, to_vtt

TALK = Transcript(
    file="talk.wav",
    text="Hello & <world> --> bye",
    duration=3725.5,
    language="en",
    segments=(
        Segment(0.0, 30.0004, "Hello & <world>"),
        Segment(30.0004, 61.25, "  "),
        Segment(61.25, 3725.4996, "--> a\n\n--> b ---->", truncated=True),
    ),
)


def test_text() -> None:
    assert to_txt(TALK) == "Hello & <world> --> bye\n"
    assert to_txt(Transcript("a", text="two\nlines")) == "two lines\n"
    assert to_txt(Transcript("a")) == "\n"


def test_subrip() -> None:
    assert to_srt(TALK) == (
        "1\n00:00:00,000 --> 00:00:30,000\nHello & <world>\n\n2\n00:01:01,250 --> 01:02:05,500\n-> a -> b --->\n"
    )


def test_webvtt() -> None:
    assert to_vtt(TALK) == (
        "WEBVTT\n"
        "\n00:00:00.000 --> 00:00:30.000\nHello &amp; &lt;world&gt;\n"
        "\n00:01:01.250 --> 01:02:05.500\n--&gt; a --&gt; b ----&gt;\n"
    )


def test_json() -> None:
    assert json.loads(to_json(TALK)) == {
        "file": "talk.wav",
        "text": "Hello & <world> --> bye",
        "duration": 3725.5,
        "language": "en",
        "truncated": True,
        "segments": [
            {"start": 0.0, "end": 30.0004, "text": "Hello & <world>", "truncated": False},
            {"start": 30.0004, "end": 61.25, "text": "  ", "truncated": False},
            {"start": 61.25, "end": 3725.4996, "text": "--> a\n\n--> b ---->", "truncated": True},
        ],
    }
    assert to_json(Transcript("a", text="日本 é"), indent=None).count("\n") == 1
    assert "日本 é" in to_json(Transcript("a", text="日本 é"))


def test_an_error_is_all_there_is() -> None:
    assert json.loads(to_json(Transcript("a.wav", error="a.wav: empty"))) == {"file": "a.wav", "error": "a.wav: empty"}


def test_nothing_said() -> None:
    silent = Transcript("a", duration=1.0, segments=(Segment(0, 1, ""),))
    assert to_srt(silent) == "" and to_vtt(silent) == "WEBVTT\n"


@pytest.mark.parametrize(
    ("seconds", "time"),
    [(0, "00:00:00.000"), (59.9996, "00:01:00.000"), (3599.9999, "01:00:00.000"), (360000.123, "100:00:00.123")],
)
def test_times_are_rounded_to_milliseconds(seconds: float, time: str) -> None:
    assert f"\n{time} --> {time}\n" in to_vtt(Transcript("a", segments=(Segment(seconds, seconds, "a"),)))


@given(st.lists(st.tuples(st.floats(0, 1e5), st.text()), max_size=5))
def test_no_text_breaks_the_cues(spoken: list[tuple[float, str]]) -> None:
    segments = tuple(Segment(start, start + 1, text) for start, text in spoken)
    transcript = Transcript("a", segments=segments)
    cues = [segment for segment in segments if segment.text.strip()]
    srt, vtt = to_srt(transcript), to_vtt(transcript)
    assert srt.count("-->") == vtt.count("-->") == len(cues)
    assert len(re.findall(r"^\d+\n[\d:,]+ --> [\d:,]+\n[^\n]+\n", srt, re.MULTILINE)) == len(cues)
    blocks = vtt.split("\n\n")[1:]
    assert len(blocks) == len(cues) and all(len(block.strip("\n").split("\n")) == 2 for block in blocks)


def test_formats_by_their_names() -> None:
    assert list(FORMATS) == ["txt", "json", "srt", "vtt"]
