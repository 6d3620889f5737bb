"""Many requests at once on one model: each joins when there is room and leaves when it is done.

Recordings are loaded, and their features taken, by workers ahead of the model. Encoder batches are made of chunks of
about the same length. All texts that are being written, of whatever length and by whatever search, are one batch of
the decoder, each at its own position over the pages of one pool: a request writes what `model.generate` alone writes.
"""

import atexit
import itertools
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, as_completed
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from fastspeech.feeder import Feeder
from fastspeech.generation.pages import PagedCache, PagePool
from fastspeech.generation.plan import Plan
from fastspeech.layers import paged
from fastspeech.layers.searcher import Searcher
from fastspeech.layers.writer import Writer
from fastspeech.listener import Listener
from fastspeech.outputs import BaseModelOutput
from fastspeech.recognition import PROMPT_OPTIONS, Recogniser
from fastspeech.requests import Handle, Job, Request, Result, Summary, spend

_CPU_POOL_BYTES = 1 << 30

_WITHOUT_A_PLACE = ("streamer", "assistant_model", "custom_generate", "return_dict_in_generate", "num_return_sequences")
"""Arguments of `generate` that ask for more than a text."""


class Engine:
    """Transcribes recordings as they are submitted, from any thread.

        with Engine(model, processor) as engine:
            handles = [engine.submit(path, language="en") for path in paths]
            for handle in engine.as_completed(handles):
                print(handle.result().text)

    A text is that of `model.generate` with the chunk alone; but matrix products may be summed in another order where
    other rows are beside it, which can tip a token whose score was equal to the last bits with another's.

    Args:
        model: an encoder-decoder of the library.
        processor: of the model.
        memory: bytes of the pages that keys and values are kept in, at most; math.inf for as many as it takes. By
            default 1 GiB on the CPU, and on a GPU `gpu_memory_fraction` of what is free. A GPU's are taken at once,
            others as they are needed.
        gpu_memory_fraction: see `memory`.
        page_size: tokens of a page.
        kv_cache_dtype: "auto" for the model's own, or "fp8": pages hold keys and values as float8_e4m3fn, a quarter of
            float32's bytes and half of bfloat16's, so that the same memory holds as many more requests. Of a number
            between 2^-6 and 448 four significant bits are left, of a smaller one fewer, and a larger one becomes 448;
            the scales are all 1. That costs accuracy: texts are no longer those of `model.generate`. Of small
            models with random weights logits moved by 1 percent (CohereAsr), 9 (Moonshine) and 2 (Speech2Text), of root
            mean squares, and 99, 92 and 98 of 100 best tokens stayed the best; the demo checkpoint's sample keeps its
            text. It is for a GPU's memory: a CPU has no such numbers and converts them one by one, so that attention
            over them takes many times as long.
        max_rows: hypotheses in the decoder at once, over all requests.
        max_seconds: of audio in one batch of the encoder, padding included; a longer chunk is a batch of its own. By
            default 120 on a GPU; 20 on a CPU, which longer chunks keep busy one by one. A CPU of several cores encodes
            two batches at a time, beside the decoder.
        workers: threads that load recordings and take features.
        ahead: seconds of audio that are loaded and wait for the model, at most; further recordings wait to be loaded.
        max_tokens_per_second: as in `pipeline`.
        former: an engine of the same model and arguments that was closed: its pages and recorded steps serve again.

    Raises:
        ValueError: another kind of model, or an argument out of range.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        memory: float | None = None,
        gpu_memory_fraction: float = 0.5,
        page_size: int = 16,
        kv_cache_dtype: str = "auto",
        max_rows: int = 64,
        max_seconds: float | None = None,
        workers: int = 2,
        ahead: float = 600.0,
        max_tokens_per_second: float | None = None,
        former: "Engine | None" = None,
    ) -> None:
        if not self.serves(model):
            raise ValueError(f"the engine serves encoder-decoder models, not {type(model).__name__}")
        decoder = model.model.decoder
        weight = next(decoder.parameters())
        if max_seconds is None:
            max_seconds = 20.0 if weight.device.type == "cpu" else 120.0
        positive = {"max_rows": max_rows, "max_seconds": max_seconds, "workers": workers, "ahead": ahead}
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if kv_cache_dtype not in ("auto", "fp8"):
            raise ValueError(f"kv_cache_dtype is 'auto' or 'fp8', not {kv_cache_dtype!r}")
        dtype = torch.float8_e4m3fn if kv_cache_dtype == "fp8" else weight.dtype
        self.recogniser = Recogniser(model, processor, max_tokens_per_second)
        self.model = self.recogniser.model
        self.max_rows = max_rows
        self.max_seconds = max_seconds
        self._decoder = decoder
        sizes = len(decoder.layers), decoder.kv_heads, decoder.head_dim
        page = PagePool.page_bytes(*sizes, page_size, dtype)
        if memory is None:
            memory = _CPU_POOL_BYTES
            if weight.device.type == "cuda":
                memory = int(gpu_memory_fraction * torch.cuda.mem_get_info(weight.device)[0])
        if memory < page:
            raise ValueError(f"memory={memory} holds no page, which has {page} bytes")
        self._most_pages = memory if memory == math.inf else int(memory // page)
        pages = int(self._most_pages) if weight.device.type == "cuda" and memory < math.inf else 0
        if former is None:
            with torch.inference_mode(False):
                self.pool = PagePool(*sizes, pages, page_size=page_size, dtype=dtype, device=weight.device)
            self.writer = Writer(model, self.pool, max_rows)
            self.searcher = Searcher(model, self.pool, max_rows)
        else:
            self.pool, self.writer, self.searcher = former.pool, former.writer, former.searcher

        self._lock = threading.Condition()
        self._running: list[Job] = []
        self._numbers = itertools.count()
        self._open: set[Request] = set()
        self._closing = False
        self._process = os.getpid()
        self._done = {"requests": 0, "failed": 0, "cancelled": 0, "tokens": 0, "peak": 0}
        self._audio = self._busy = 0.0
        self._feeder = Feeder(self.recogniser, max_rows, max_seconds, workers, ahead, self._lock, self._end)
        self._listener = Listener(
            self.model, self._feeder, self._running, max_rows, max_seconds, self._lock, self._is_over
        )
        serving = threading.Thread(target=self._serve, name="fastspeech-engine", daemon=True)
        self._threads = [*self._feeder.threads, *self._listener.threads, serving]
        for thread in self._threads:
            thread.start()
        _engines.add(self)

    @staticmethod
    def serves(model: Any) -> bool:
        """Whether this is a model that an engine takes."""
        return hasattr(getattr(model, "model", None), "decoder") and hasattr(model, "functions")

    def submit(
        self,
        audio: Any,
        *,
        word_timestamps: bool = False,
        confidence: bool = False,
        seed: int | None = None,
        progress: Callable[[float, float], None] | None = None,
        **options: Any,
    ) -> Handle:
        """Take a recording in; returns at once.

        Args:
            audio: as the pipeline takes a recording.
            word_timestamps, confidence: as in the pipeline.
            seed: of what is drawn, with do_sample: chunk n of a recording is that of `generate` after
                torch.manual_seed(seed + n). None for any.
            progress: called in the engine's thread with (seconds transcribed, seconds of the recording).
            options: `language` and `punctuation`, where the model takes them, and parameters of `generate`.

        Raises:
            ValueError: a language or an argument that the model does not know.
            RuntimeError: the engine is closed, or of the process that this one was forked from.
        """
        if os.getpid() != self._process:
            raise RuntimeError("the engine's threads stayed behind in another process: make an engine after a fork")
        refused = [name for name in _WITHOUT_A_PLACE if options.get(name) not in (None, False, 1)]
        if refused:
            raise ValueError(f"the engine gives one text for a recording: it does not take {', '.join(refused)}")
        prompt = self.recogniser.prompt(options)
        rest = {name: value for name, value in options.items() if name not in PROMPT_OPTIONS}
        details = word_timestamps, confidence
        request = Request(audio, next(self._numbers), prompt, rest, details, seed, progress)
        with self._lock:
            if self._closing:
                raise RuntimeError("the engine is closed")
            self._open.add(request)
            self._feeder.put(request)
        return Handle(request, self._cancel)

    def as_completed(self, handles: Iterable[Handle], timeout: float | None = None) -> Iterator[Handle]:
        """The handles in the order in which they come to their ends."""
        by_future = {handle._request.future: handle for handle in handles}
        for future in as_completed(by_future, timeout):
            yield by_future[future]

    def summary(self) -> Summary:
        """What was done so far."""
        with self._lock:
            done = self._done
            return Summary(
                done["requests"],
                done["failed"],
                done["cancelled"],
                self._audio,
                self._feeder.loaded,
                self._busy,
                done["tokens"],
                done["peak"],
                self.pool.pages,
            )

    def close(self, wait: bool = True) -> None:
        """End: what was submitted is finished, or given up where `wait` is false. Further calls do nothing."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._closing = True
            if not wait:
                for request in self._open:
                    request.cancelled = True
            self._lock.notify_all()
        self._feeder.close()
        for thread in self._threads:
            if thread is not threading.current_thread():  # where garbage is collected, an owner may end in any thread
                thread.join()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self.close(wait=kind is None)

    # In the engine's thread.

    def _serve(self) -> None:
        try:
            while self._wait():
                began = time.perf_counter()
                self._turn()
                self._busy += time.perf_counter() - began
        except BaseException as error:
            # Not of any one request: nobody is to wait for what will not come.
            with self._lock:
                self._closing = True
                self._feeder.hurry()
                left = list(self._open)
            for request in left:
                self._end(request, error)
            for job in self._jobs():
                self._leave(job)
            raise

    def _wait(self) -> bool:
        """Wait for work; false when there will be none."""
        with self._lock:
            self._lock.wait_for(lambda: self._has_work() or self._is_over())
            return self._has_work()

    def _has_work(self) -> bool:
        listener = self._listener
        return bool(listener.error or listener.is_busy() or listener.heard or self._running or self._feeder.waiting)

    def _is_over(self) -> bool:
        """Whether nothing more will come. The lock is held."""
        return self._closing and not self._open

    def _jobs(self) -> list[Job]:
        """All that are in the engine's hands."""
        with self._lock:
            return [*self._running, *self._listener.heard, *self._feeder.waiting]

    @torch.no_grad()
    def _turn(self) -> None:
        if self._listener.error is not None:
            raise self._listener.error
        for job in self._jobs():
            if job.request.over:
                self._drop(job, CancelledError())
        fits = True
        while fits and (heard := self._listener.heard):
            fits = self._seat(heard[0])
        if not (fits and self._rows_come()):
            self._decode()
            self._done["peak"] = max(self._done["peak"], self.pool.in_use)

    def _rows_come(self) -> bool:
        """Whether further rows are worth more than a step, which reads the weights once for all rows there are; waits
        for them."""
        listener = self._listener
        if not listener.threads:
            return listener.listen()
        with self._lock:
            rows = sum(job.plan.beams for job in self._running)
            if not listener.heard and (rows >= (self.max_rows + 1) // 2 or not listener.is_busy()):
                return False
            self._lock.wait_for(
                lambda: (
                    listener.heard
                    or listener.error
                    or not listener.is_busy()
                    or any(job.request.over for job in self._jobs())
                )
            )
            return True

    def _seat(self, job: Job) -> bool:
        """Begin to search for what was said in a chunk; false where others have to end first."""
        if job.fault is not None:
            self._drop(job, job.fault)
            return True
        plan, frames = job.plan, job.encoded.shape[1]
        needed = PagedCache.most_pages(self.pool, plan.beams, plan.max_length - 1, frames)
        wanted = self.pool.reserved + needed
        if wanted > self._most_pages >= needed:
            return False
        if needed > self._most_pages:
            message = (
                f"a chunk of {job.seconds:.1f} s with {plan.beams} hypotheses of up to {plan.max_length} tokens "
                f"needs {needed} pages of keys and values, the engine has {self._most_pages}: give it more memory"
            )
            self._drop(job, ValueError(message))
            return True
        try:
            if wanted > self.pool.pages:
                self.pool.grow(int(min(self._most_pages, max(wanted, 4 * self.pool.pages))))
            job.cache = PagedCache(self.pool, plan.beams, plan.max_length - 1, frames)
            paged.listen(self._decoder, job.encoded, [job.cache])
            if self.writer.takes(plan):
                self.writer.add(job, job.cache, job.prompt, plan)
            else:
                alone = len(self._open) == 1 and job.request.waiting == 1
                self.searcher.add(job, job.cache, job.prompt, _with_seed(plan, job), alone)
        except Exception as error:
            self._drop(job, error)
            return True
        with self._lock:
            self._listener.heard.remove(job)
            self._running.append(job)
            self._lock.notify_all()
        return True

    def _decode(self) -> None:
        """Let the texts that are written, and searched for, go on."""
        began = time.perf_counter()
        ended = [*self.writer.write(), *self.searcher.search()]
        spend("decoded", began, self._running)
        for key, outcome in ended:
            job = cast(Job, key)
            if isinstance(outcome, BaseException):
                self._drop(job, outcome)
                continue
            try:
                self._finish(job, outcome[None])
            except BaseException as error:
                self._drop(job, error)

    def _finish(self, job: Job, row: Tensor) -> None:
        """Put down what was found for a chunk, row (1, length), and with the last of its recording the result."""
        request, recogniser, chunk = job.request, self.recogniser, job.chunk
        prompt_length = job.prompt.shape[1]
        recogniser.take(chunk, row[0].tolist(), job.plan.max_length - prompt_length, request.options, prompt_length)
        if any(request.details):
            first = recogniser.first(request.options, prompt_length)
            inputs = {"encoder_outputs": BaseModelOutput(job.encoded)}
            recogniser.read_again([chunk], inputs, row.to(job.encoded.device), first, with_words=request.details[0])
        self._leave(job)
        with self._lock:
            self._audio += job.seconds
        recording, rate = job.recording, recogniser.rate
        request.waiting -= 1
        request.samples += len(chunk.samples)
        if request.progress is not None:
            request.progress(request.samples / rate, recording.samples / rate)
        if request.waiting == 0:
            transcript = recogniser.transcript(recording, request.prompt.get("language"), request.details)
            self._end(request, Result(transcript, request.timing(recording.samples / rate)))

    def _drop(self, job: Job, error: BaseException) -> None:
        """Take a job out; its request ends with the error, unless it has ended."""
        self._leave(job)
        self._end(job.request, error)

    def _leave(self, job: Job) -> None:
        """Forget a job and give its pages back."""
        with self._lock:
            if job.left:
                return
            job.left = True
            for queue in (self._running, self._listener.heard):
                if job in queue:
                    queue.remove(job)
            self._feeder.remove(job)
            self._lock.notify_all()
        self.writer.remove(job)
        self.searcher.remove(job)
        if hasattr(job, "cache"):
            self._done["tokens"] += job.plan.beams * job.cache.length
            job.cache.free()

    # In any thread.

    def _end(self, request: Request, outcome: Result | BaseException) -> None:
        """Bring a request to its end, once."""
        with self._lock:
            if request not in self._open:
                return
            self._open.remove(request)
            if request.cancelled:
                outcome = CancelledError()
            self._done["requests"] += 1
            if isinstance(outcome, CancelledError):
                self._done["cancelled"] += 1
            elif isinstance(outcome, BaseException):
                self._done["failed"] += 1
            self._lock.notify_all()
        if isinstance(outcome, CancelledError):
            request.future.cancel()
        if not request.future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, BaseException):
            request.future.set_exception(outcome)
        else:
            request.future.set_result(outcome)

    def _cancel(self, request: Request) -> bool:
        with self._lock:
            if request not in self._open:
                return False
            request.cancelled = True
            taken = request.taken
            self._lock.notify_all()
        if not taken:
            self._end(request, CancelledError())
        return True


def _with_seed(plan: Plan, job: Job) -> Plan:
    """The plan of a job with numbers of its own to draw by, if it draws."""
    if not plan.do_sample:
        return plan
    generator = torch.Generator(job.prompt.device)
    seed = generator.seed() if job.request.seed is None else job.request.seed
    generator.manual_seed(seed + (job.chunk.index or 0))
    return replace(plan, generator=generator)


_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """At exit nothing is finished: who wanted results waited for them."""
    for engine in list(_engines):
        engine.close(wait=False)
