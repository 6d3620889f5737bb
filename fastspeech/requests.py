"""What an engine is asked for: requests, the chunks they consist of, and what becomes of them."""

import asyncio
import time
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fastspeech.generation.pages import PagedCache
from fastspeech.generation.plan import Plan
from fastspeech.recognition import Chunk, Recording
from fastspeech.transcripts import Transcript


@dataclass(frozen=True)
class Timing:
    """Where the time of a request went, in seconds: until a worker took it, to load it, to take its features, in the
    encoder, in the decoder, and in all; `audio` is how long it is. Work in a batch counts in full for each in it."""

    queued: float
    loaded: float
    features: float
    encoded: float
    decoded: float
    total: float
    audio: float

    @property
    def realtime(self) -> float:
        """Seconds of audio for each second from its submission to its result."""
        return self.audio / self.total


@dataclass(frozen=True)
class Result:
    """What was said, and how long it took to find out."""

    transcript: Transcript
    timing: Timing

    @property
    def text(self) -> str:
        return self.transcript.text


@dataclass(frozen=True)
class Summary:
    """What an engine has done so far.

    Attributes:
        requests, failed, cancelled: how many came to an end, and how.
        audio: seconds of it that were transcribed.
        loaded: seconds of it that were loaded.
        busy: seconds in which there was work.
        tokens: that were read by the decoder.
        peak_pages, pages: of the pool.
    """

    requests: int
    failed: int
    cancelled: int
    audio: float
    loaded: float
    busy: float
    tokens: int
    peak_pages: int
    pages: int

    @property
    def realtime(self) -> float:
        """Seconds of audio for each second of work."""
        return self.audio / self.busy if self.busy else 0.0


class Handle:
    """A request on its way: `result()` waits for it, as `await handle` does; `cancel()` gives it up."""

    def __init__(self, request: "Request", cancel: Callable[["Request"], bool]) -> None:
        self._request = request
        self._cancel = cancel

    def result(self, timeout: float | None = None) -> Result:
        """What was said.

        Raises:
            AudioError: the recording cannot be used.
            ValueError: an argument that the model does not know, or more than the engine's memory can ever hold.
            concurrent.futures.CancelledError: it was given up.
            TimeoutError: not within `timeout` seconds.
            Any exception of the request's own rules and criteria.
        """
        return self._request.future.result(timeout)

    def cancel(self) -> bool:
        """Give the request up, at the next step of the model at the latest: its result is a CancelledError. False where
        it has come to its end."""
        return self._cancel(self._request)

    def done(self) -> bool:
        """Whether it has come to an end, of whatever kind."""
        return self._request.future.done()

    def __await__(self) -> Generator[Any, None, Result]:
        return asyncio.wrap_future(self._request.future).__await__()


@dataclass(eq=False)
class Request:
    """A recording that was submitted, how it is to be transcribed, and how far that is."""

    audio: Any
    number: int
    prompt: dict[str, Any]
    options: dict[str, Any]
    details: tuple[bool, bool]
    seed: int | None
    progress: Callable[[float, float], None] | None
    future: "Future[Result]" = field(default_factory=Future)
    cancelled: bool = False
    taken: bool = False
    waiting: int = 0
    samples: int = 0
    submitted: float = field(default_factory=time.perf_counter)
    times: dict[str, float] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        """Whether it has come to its end, or was cancelled, by its handle or by who awaited it."""
        return self.cancelled or self.future.done()

    def spend(self, what: str, seconds: float) -> None:
        self.times[what] = self.times.get(what, 0.0) + seconds

    def timing(self, audio: float) -> Timing:
        """Where the time went, for a recording of so many seconds that is done now."""
        names = ("queued", "loaded", "features", "encoded", "decoded")
        spent = {name: self.times.get(name, 0.0) for name in names}
        return Timing(**spent, total=time.perf_counter() - self.submitted, audio=audio)


@dataclass(eq=False)
class Job:
    """A chunk of a request, from its features to its tokens.

    Attributes:
        recording: of which the chunk is.
        seconds: how long the chunk is.
        encoded: (1, frames, width), once it was listened to; fault: the error of that, if there was one.
        cache: once what was said in it is written down.
        left: whether it is over.
    """

    request: Request
    recording: Recording
    chunk: Chunk
    seconds: float
    inputs: dict[str, Any]
    prompt: Tensor
    plan: Plan
    encoded: Tensor = field(init=False)
    cache: PagedCache = field(init=False)
    fault: Exception | None = None
    left: bool = False


def spend(what: str, began: float, jobs: Iterable[Job]) -> None:
    """Note what a batch took for each request in it, once, however many of its chunks are."""
    spent = time.perf_counter() - began
    for request in {job.request for job in jobs}:
        request.spend(what, spent)


def together(inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """The model's inputs for several clips at once, of those for each: tensors (1, n, ...), padded with 0 in n."""
    joined = {}
    for name, first in inputs[0].items():
        if not isinstance(first, Tensor):
            joined[name] = first
            continue
        most = max(each[name].shape[1] for each in inputs)
        batch = first.new_zeros(len(inputs), most, *first.shape[2:])
        for row, each in zip(batch, inputs, strict=True):
            row[: each[name].shape[1]] = each[name][0]
        joined[name] = batch
    return joined
