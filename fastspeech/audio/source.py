"""Where audio comes from: a path, bytes, a file object or an http(s) URL, each made a seekable binary file."""

import contextlib
import http.client
import io
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

from fastspeech.errors import AudioError

Source = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

_MAX_SPOOLED_BYTES = 4 << 30
_BLOCK = 1 << 20


def source_name(source: Any) -> str:
    """What error messages call this source."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"<{type(source).__name__}>"


@contextlib.contextmanager
def open_source(source: Source, timeout: float | None) -> Iterator[BinaryIO]:
    """Yields a non-empty seekable binary file at its beginning; closes what it opened itself, never the caller's file.

    A URL, or a stream that cannot seek, is first copied to an unnamed temporary file of at most 4 GiB: the media
    library itself never opens a path or a connection, so no playlist can make it read what the caller did not name.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_opened(source, timeout))
        if file.seek(0, os.SEEK_END) == 0:
            raise AudioError(f"{source_name(source)}: the file is empty (0 bytes)")
        file.seek(0)
        yield file


@contextlib.contextmanager
def _opened(source: Source, timeout: float | None) -> Iterator[BinaryIO]:
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        with _downloaded(source, timeout) as file:
            yield file
    elif isinstance(source, str | os.PathLike):
        try:
            file = open(source, "rb")  # noqa: SIM115 - closed below; only the opening may be blamed on the path
        except OSError as error:
            raise AudioError(f"{os.fspath(source)}: cannot be opened: {error.strerror}") from error
        with file:
            yield file
    elif isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source)
    elif not callable(getattr(source, "read", None)):
        raise TypeError(
            f"audio must be a path, an http(s) URL, bytes or a binary file, not {type(source).__name__}"
            " (arrays of samples need no loading)"
        )
    elif isinstance(source.read(0), str):
        raise TypeError(f"{source_name(source)}: the file is open in text mode; open it with mode 'rb'")
    elif source.seekable():
        yield source
    else:
        with tempfile.TemporaryFile() as spool:
            _copy(source, cast(BinaryIO, spool), source_name(source))
            yield cast(BinaryIO, spool)


@contextlib.contextmanager
def _downloaded(url: str, timeout: float | None) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile() as spool:
        file = cast(BinaryIO, spool)
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "fastspeech"})
            with urllib.request.urlopen(request, timeout=timeout) as response:
                expected = response.headers.get("Content-Length")
                received = _copy(response, file, url)
        except urllib.error.HTTPError as error:
            raise AudioError(f"{url}: the server answered {error.code} {error.reason}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, AudioError):
                raise
            raise AudioError(f"{url}: cannot be downloaded: {getattr(error, 'reason', error)}") from error
        if expected is not None and received < int(expected):
            raise AudioError(f"{url}: the download broke off after {received} of {expected} bytes")
        yield file


def _copy(stream: Any, file: BinaryIO, name: str) -> int:
    copied = 0
    while block := stream.read(_BLOCK):
        copied += len(block)
        if copied > _MAX_SPOOLED_BYTES:
            raise AudioError(f"{name}: more than {_MAX_SPOOLED_BYTES >> 30} GiB")
        file.write(block)
    return copied
