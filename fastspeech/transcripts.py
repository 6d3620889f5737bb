"""What was said in a recording, and the files it is written to: text, JSON, SubRip, WebVTT."""

import html
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Word:
    """A word, its times in seconds from the beginning of the recording, and the mean probability of its tokens."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Token:
    """A token of the vocabulary and its probability, as the model saw it, after those before."""

    text: str
    confidence: float


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording and its text; times in seconds from the beginning.

    `truncated`: the text was cut by the limit of tokens, so that words are missing at its end. `words` and `tokens`
    are there where they were asked for.
    """

    start: float
    end: float
    text: str
    truncated: bool = False
    words: tuple[Word, ...] = ()
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """What was said in one recording, or why that cannot be told.

    Attributes:
        file: the name of the recording.
        text: all of it.
        duration: of the recording, in seconds.
        language: that the model was told, if it takes one.
        segments: the text with times, in order.
        error: what is wrong with the recording; all but the name is then empty.
    """

    file: str
    text: str = ""
    duration: float = 0.0
    language: str | None = None
    segments: tuple[Segment, ...] = ()
    error: str | None = None

    @property
    def truncated(self) -> bool:
        """Whether words are missing because the limit of tokens cut the text of a segment."""
        return any(segment.truncated for segment in self.segments)


def to_txt(transcript: Transcript) -> str:
    """The text, as one line."""
    return _one_line(transcript.text) + "\n"


def to_json(transcript: Transcript, indent: int | None = 2) -> str:
    """An object of the record's fields; those of words and tokens only where there are any."""
    return json.dumps(_fields(transcript), ensure_ascii=False, indent=indent) + "\n"


def to_srt(transcript: Transcript) -> str:
    """SubRip, a cue for each segment, or for each word where there are words.

    It knows no escapes, so that an arrow in the text, which would begin a cue, is shortened.
    """
    cues = (
        f"{number}\n{_time(segment.start, ',')} --> {_time(segment.end, ',')}\n"
        f"{_one_line(segment.text).replace('-->', '->')}\n"
        for number, segment in enumerate(_spoken(transcript), 1)
    )
    return "\n".join(cues)


def to_vtt(transcript: Transcript) -> str:
    """WebVTT, with the cues of `to_srt`, whose text escapes &, < and > as HTML does."""
    cues = (
        f"\n{_time(segment.start, '.')} --> {_time(segment.end, '.')}\n"
        f"{html.escape(_one_line(segment.text), quote=False)}\n"
        for segment in _spoken(transcript)
    )
    return "WEBVTT\n" + "".join(cues)


FORMATS: dict[str, Callable[[Transcript], str]] = {"txt": to_txt, "json": to_json, "srt": to_srt, "vtt": to_vtt}
"""The contents of a file in each format, by its extension."""


def _fields(transcript: Transcript) -> dict[str, object]:
    if transcript.error is not None:
        return {"file": transcript.file, "error": transcript.error}
    fields = asdict(transcript) | {"truncated": transcript.truncated}
    del fields["error"]
    for segment in fields["segments"]:
        for name in ("words", "tokens"):
            if not segment[name]:
                del segment[name]
    return fields


def _spoken(transcript: Transcript) -> list[Segment | Word]:
    cues = (cue for segment in transcript.segments for cue in segment.words or (segment,))
    return [cue for cue in cues if cue.text.strip()]


def _one_line(text: str) -> str:
    """A blank line would end a cue."""
    return " ".join(text.split())


def _time(seconds: float, decimal: str) -> str:
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}{decimal}{milliseconds % 1000:03}"
