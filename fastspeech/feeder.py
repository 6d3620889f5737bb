"""Recordings on their way to the model: loaded and made into features by workers, and picked in batches."""

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from queue import SimpleQueue

from fastspeech.recognition import Chunk, Recogniser, Recording
from fastspeech.requests import Job, Request


class Feeder:
    """Workers that are ahead of the model, but no further than so many seconds of audio.

    Args:
        recogniser: of the model.
        max_rows: hypotheses of a chunk, at most.
        max_seconds: of audio in a batch, padding included; a longer chunk is a batch of its own.
        workers: how many threads.
        ahead: seconds of audio that wait for the model; further recordings wait to be loaded.
        lock: held where anything changes, and told of it.
        fail: called with a request and the error that it ends with.

    Attributes:
        waiting: the chunks that are ready, in the order in which they became so.
        seconds: of them.
        loaded: seconds of audio that were loaded so far.
        threads: the workers, which the engine starts.
    """

    def __init__(
        self,
        recogniser: Recogniser,
        max_rows: int,
        max_seconds: float,
        workers: int,
        ahead: float,
        lock: threading.Condition,
        fail: Callable[[Request, BaseException], None],
    ) -> None:
        self._recogniser = recogniser
        self._max_rows, self._max_seconds, self._ahead = max_rows, max_seconds, ahead
        self._lock, self._fail = lock, fail
        self.waiting: deque[Job] = deque()
        self.seconds = self.loaded = 0.0
        self._queue: SimpleQueue[Request | None] = SimpleQueue()
        self.threads = [
            threading.Thread(target=self._work, name=f"fastspeech-load-{n}", daemon=True) for n in range(workers)
        ]

    def put(self, request: Request) -> None:
        """Have a recording loaded after those before it."""
        self._queue.put(request)

    def close(self) -> None:
        """Let the workers end when they have come to the end of what was put."""
        for _ in self.threads:
            self._queue.put(None)

    def hurry(self) -> None:
        """Nobody waits any longer until there is room. The lock is held."""
        self._ahead = math.inf

    def batch(self, rows: int) -> list[Job]:
        """Chunks for the encoder, of at most so many hypotheses: the one that waits longest, and with it those of about
        its length; of just its length where the model hears padding."""
        with self._lock:
            waiting = list(self.waiting)
        alike = getattr(self._recogniser.model, "padding_is_heard", False)
        batch: list[Job] = []
        longest = 0.0
        for job in sorted(waiting, key=lambda job: abs(job.seconds - waiting[0].seconds)):
            longest = max(longest, job.seconds)
            rows -= job.plan.beams
            if rows < 0 or (batch and longest * (len(batch) + 1) > self._max_seconds):
                break
            if alike and job.seconds != waiting[0].seconds:
                break
            batch.append(job)
        with self._lock:
            for job in batch:
                self.remove(job)
        return batch

    def remove(self, job: Job) -> None:
        """Take a chunk, if it is there, from those that wait, which makes room for others. The lock is held."""
        if job in self.waiting:
            self.waiting.remove(job)
            self.seconds -= job.seconds
            self._lock.notify_all()

    def _work(self) -> None:
        while (request := self._queue.get()) is not None:
            self._prepare(request)

    def _prepare(self, request: Request) -> None:
        """Load a recording, and make the jobs of its chunks."""
        try:
            with self._lock:
                request.taken = True
                self._lock.wait_for(lambda: self.seconds < self._ahead or request.over)
            request.spend("queued", time.perf_counter() - request.submitted)
            if request.over:
                raise CancelledError
            began = time.perf_counter()
            recording = self._recogniser.load(request.audio, request.number)
            request.audio = None
            request.spend("loaded", time.perf_counter() - began)
            if recording.error is not None:
                raise recording.error
            began = time.perf_counter()
            jobs = [self._job(request, recording, chunk) for chunk in recording.chunks]
            request.spend("features", time.perf_counter() - began)
            request.waiting = len(jobs)
            with self._lock:
                if request.over:
                    raise CancelledError
                self.waiting.extend(jobs)
                seconds = sum(job.seconds for job in jobs)
                self.seconds += seconds
                self.loaded += seconds
                self._lock.notify_all()
        except BaseException as error:  # whatever it is, the worker goes on
            self._fail(request, error)

    def _job(self, request: Request, recording: Recording, chunk: Chunk) -> Job:
        recogniser = self._recogniser
        inputs = recogniser.inputs([chunk], request.prompt)
        ids = inputs.get("decoder_input_ids")
        prompt_length = 1 if ids is None else ids.shape[1]
        limits = recogniser.limits([chunk], request.options, prompt_length)
        limit = limits[0] if isinstance(limits, list) else limits
        _, inputs, prompt, plan = recogniser.model.planned(**inputs, **{**request.options, "max_new_tokens": limit})
        if plan.beams > self._max_rows:
            raise ValueError(f"num_beams={plan.beams}: the engine has max_rows={self._max_rows}")
        return Job(request, recording, chunk, len(chunk.samples) / recogniser.rate, inputs, prompt, plan)
