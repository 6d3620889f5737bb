"""Chunks on their way from the feeder to the decoder: encoded in batches, beside its steps where cores have time."""

import threading
import time
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch

from fastspeech.feeder import Feeder
from fastspeech.requests import Job, spend, together


def threads_beside(device: torch.device) -> int:
    """How many threads encode beside the engine's, which does it itself where there are none.

    Of every batch, and of every step of the decoder, one core does a part alone while the others wait: two threads and
    the engine's fill each other's gaps. With one core there are none, and a GPU takes work one by one.
    """
    return 2 if device.type == "cpu" and torch.get_num_threads() > 1 else 0


class Listener:
    """Encodes the chunks that wait for it, as many as there will be rows for in the decoder.

    Args:
        model: of the engine.
        feeder: of the chunks.
        running: the engine's jobs in the decoder.
        max_rows: hypotheses there at once.
        max_seconds: of audio in a batch; no more is begun while so much is heard and has no rows yet.
        lock: held where anything changes, and told of it.
        over: whether nothing more will come. The lock is held.

    Attributes:
        heard: what was encoded and has no rows yet, in order; jobs with what they are heard as, or the error of that.
        threads: that do it, which the engine starts; where there are none it calls `listen`.
        error: what has ended one of them, of no one request.
    """

    def __init__(
        self,
        model: Any,
        feeder: Feeder,
        running: list[Job],
        max_rows: int,
        max_seconds: float,
        lock: threading.Condition,
        over: Callable[[], bool],
    ) -> None:
        self._model, self._feeder, self._running = model, feeder, running
        self._max_rows, self._max_seconds = max_rows, max_seconds
        self._lock, self._over = lock, over
        # A row of a padded batch is to be encoded as it would be alone.
        self._exactly = {"exact_batching": True} if "exact_batching" in signature(model.forward).parameters else {}
        self.heard: list[Job] = []
        self._listening: list[Job] = []
        self.error: BaseException | None = None
        self.threads = [
            threading.Thread(target=self._work, name=f"fastspeech-listen-{n}", daemon=True)
            for n in range(threads_beside(model.device))
        ]

    def is_busy(self) -> bool:
        """Whether a batch is being encoded, or could be. The lock is held."""
        return bool(self._listening) or self._has_next()

    @torch.no_grad()
    def listen(self) -> bool:
        """Encode a batch; false where none waits, or there is no room for it."""
        with self._lock:
            if not self._has_next():
                return False
            batch = self._feeder.batch(self._free())
            self._listening += batch
        self._encode(batch)
        return True

    def _has_next(self) -> bool:
        waits = sum(job.seconds for job in self.heard)
        if waits >= self._max_seconds or (self.heard and not self.threads):
            return False
        waiting = self._feeder.waiting
        return bool(waiting) and waiting[0].plan.beams <= self._free()

    def _free(self) -> int:
        """Rows that nobody has."""
        return self._max_rows - sum(job.plan.beams for job in (*self._running, *self.heard, *self._listening))

    def _encode(self, batch: list[Job]) -> None:
        began = time.perf_counter()
        try:
            encoded = self._model.encode({**together([job.inputs for job in batch]), **self._exactly})
            hidden, mask = encoded.last_hidden_state, encoded.attention_mask
            frames = [hidden.shape[1]] * len(batch) if mask is None else mask.sum(-1).tolist()
        except Exception as error:
            if len(batch) > 1:
                # One may be at fault, and the others are not to suffer for it.
                for job in batch:
                    self._encode([job])
                return
            batch[0].fault = error
        else:
            for place, job in enumerate(batch):
                job.encoded = hidden[place : place + 1, : frames[place]]
        with self._lock:
            spend("encoded", began, batch)
            for job in batch:
                self._listening.remove(job)
            self.heard += [job for job in batch if not job.left]
            self._lock.notify_all()

    def _work(self) -> None:
        try:
            while self._wait():
                self.listen()
        except BaseException as error:
            with self._lock:
                self.error = error
                self._lock.notify_all()

    def _wait(self) -> bool:
        """Wait for a batch; false when there will be none."""
        with self._lock:
            self._lock.wait_for(lambda: self._over() or self._has_next())
            return not self._over()
