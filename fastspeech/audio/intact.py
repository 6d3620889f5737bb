"""Signs of a damaged file that ffmpeg passes over: it plays what is left of one and reports no error."""

import os
import zlib
from typing import BinaryIO

# Writers that cannot seek back leave 0, 0xFFFFFFFF or (sox) 0x7FFFF000 as the size of the samples: until the end.
_WAV_OPEN_ENDED = 0x7FFFF000

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
_REVERSED_BITS = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def damage(file: BinaryIO, format_name: str) -> str | None:
    """What a file's own framing shows to be missing or broken; None where nothing does."""
    if format_name == "wav":
        return _wav_damage(file)
    if format_name == "ogg":
        return _ogg_damage(file)
    return None


def stated_slack(file: BinaryIO, format_name: str) -> float | None:
    """Seconds by which the decoded sound may fall short of the length the header states.

    None where ffmpeg's duration is only an estimate from the file's size and cannot be held against it.
    """
    if format_name == "mp3" and not _mp3_states_frames(file):
        return None
    return _STATED_SLACK.get(format_name)


def _wav_damage(file: BinaryIO) -> str | None:
    size = file.seek(0, os.SEEK_END)
    file.seek(12)
    while len(header := file.read(8)) == 8:
        length = int.from_bytes(header[4:], "little")
        if header[:4] == b"data":
            there = size - file.tell()
            if 0 < length < _WAV_OPEN_ENDED and there < length:
                return f"truncated: its header announces {length} bytes of samples, {there} are there"
            return None
        file.seek(length + length % 2, os.SEEK_CUR)
    return None


def _ogg_damage(file: BinaryIO) -> str | None:
    """Walks the pages (RFC 3533, section 6): each whole, its checksum right, none missing between two of a stream."""
    file.seek(0)
    last: dict[bytes, int] = {}
    while header := file.read(27):
        at = file.tell() - len(header)
        lengths = file.read(header[26]) if len(header) == 27 else b""
        body = file.read(sum(lengths))
        if header[:4] != b"OggS"[: len(header)]:
            return f"corrupt: no Ogg page at byte {at}"
        if len(header) < 27 or len(lengths) < header[26] or len(body) < sum(lengths):
            return "truncated: its last page is incomplete"
        if _ogg_checksum(header[:22] + bytes(4) + header[26:] + lengths + body) != header[22:26]:
            return f"corrupt: wrong checksum in the Ogg page at byte {at}"
        stream, number, starts = header[14:18], int.from_bytes(header[18:22], "little"), header[5] & 2
        if stream in last and not starts and number != (last[stream] + 1) % 2**32:
            return f"corrupt: Ogg pages are missing before byte {at}"
        last[stream] = number
    return None


def _ogg_checksum(page: bytes) -> bytes:
    """CRC-32 as zlib's, but with the bits of each byte in the other order and without its inversions."""
    reflected = zlib.crc32(page.translate(_REVERSED_BITS), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return reflected.to_bytes(4, "big").translate(_REVERSED_BITS)


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
