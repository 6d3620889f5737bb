"""Signs of truncation that ffmpeg passes over: it plays what is left of such a file and reports no error."""

import os
from typing import BinaryIO

# Writers that cannot seek back leave 0, 0xFFFFFFFF or (sox) 0x7FFFF000 as the size of the samples: until the end.
_WAV_OPEN_ENDED = 0x7FFFF000
_MAX_OGG_PAGE = 27 + 255 + 255 * 255

# Formats whose header states how long the sound is, and by how many seconds less may be decoded: nothing where samples
# are counted, and a few frames where the count includes an encoder's padding.
_STATED_SLACK = {
    "flac": 0.001,
    "aiff": 0.001,
    "au": 0.001,
    "mov,mp4,m4a,3gp,3g2,mj2": 0.25,
    "matroska,webm": 0.25,
    "mp3": 0.25,
}


def truncation(file: BinaryIO, format_name: str) -> str | None:
    """What shows that this file's end is missing, from its own headers; None where nothing does."""
    if format_name == "wav":
        return _wav_truncation(file)
    if format_name == "ogg":
        return _ogg_truncation(file)
    return None


def stated_slack(file: BinaryIO, format_name: str) -> float | None:
    """Seconds by which the decoded sound may fall short of the length the header states.

    None where ffmpeg's duration is only an estimate from the file's size and cannot be held against it.
    """
    if format_name == "mp3" and not _mp3_states_frames(file):
        return None
    return _STATED_SLACK.get(format_name)


def _wav_truncation(file: BinaryIO) -> str | None:
    size = file.seek(0, os.SEEK_END)
    file.seek(12)
    while len(header := file.read(8)) == 8:
        length = int.from_bytes(header[4:], "little")
        if header[:4] == b"data":
            there = size - file.tell()
            if 0 < length < _WAV_OPEN_ENDED and there < length:
                return f"its header announces {length} bytes of samples and {there} are there"
            return None
        file.seek(length + length % 2, os.SEEK_CUR)
    return None


def _ogg_truncation(file: BinaryIO) -> str | None:
    """An Ogg page lists its segments' lengths (RFC 3533, section 6), so an incomplete last page can be told."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _MAX_OGG_PAGE))
    tail = file.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    segments = page[26] if len(page) > 26 else 0
    if len(page) < 27 + segments + sum(page[27 : 27 + segments]):
        return "its last page is incomplete"
    return None


def _mp3_states_frames(file: BinaryIO) -> bool:
    """Whether the first frame, after an ID3v2 tag, is a Xing, Info or VBRI header, which counts the frames."""
    file.seek(0)
    head = file.read(10)
    tag = 0
    if head[:3] == b"ID3" and len(head) == 10:
        for byte in head[6:]:
            tag = tag << 7 | byte & 0x7F
        tag += 10
    file.seek(tag)
    start = file.read(4096)
    return any(mark in start for mark in (b"Xing", b"Info", b"VBRI"))
