"""Work whose launches a GPU takes as one: CUDA graphs, and the same functions as they are where there are none.

A step of a decoder is a hundred kernels of a few microseconds, which take the host longer to launch than a GPU to run.
What can be recorded reads and writes memory that was there before it, and stays; it brings no value to the host, takes
none from there, and its shapes are the same each time.
"""

import threading
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_recording = threading.Lock()
"""In a process one graph is recorded at a time."""


def captures(device: torch.device) -> bool:
    """Whether there are graphs on a device."""
    return device.type == "cuda"


class Graphs:
    """Functions of no arguments, each recorded once and from then on replayed.

    All share one pool of memory for what they make, so that no two may run at once, and none leaves anything there.

    Attributes:
        device: where the functions run. Without graphs on it they are called in place of being replayed.
        replays: how often each was run, by its key.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.replays: dict[Hashable, int] = {}
        self._recorded: dict[Hashable, _Replay] = {}
        self._stream: Any = None
        self._pool: Any = None

    def __contains__(self, key: Hashable) -> bool:
        return key in self._recorded

    def clear(self) -> None:
        """Forget what was recorded: it would read memory that is no longer what it was."""
        self._recorded.clear()

    def forget(self, key: Hashable) -> None:
        """Forget what was recorded under `key`."""
        del self._recorded[key], self.replays[key]

    def record(self, key: Hashable, function: Callable[[], None]) -> None:
        """Make `function` what `key` stands for. On a GPU it is called twice, once to compile what it launches and once
        to record that; elsewhere once, for what it prepares."""
        if captures(self.device):
            self._recorded[key] = self._captured(function)
        else:
            function()
            self._recorded[key] = _Replay(function, [], False)
        self.replays.setdefault(key, 0)

    def run(self, key: Hashable) -> None:
        """Launch what was recorded under `key`, on the current stream."""
        self._recorded[key].run()
        self.replays[key] += 1

    def _captured(self, function: Callable[[], None]) -> "_Replay":
        with _recording, torch.cuda.device(self.device):
            if self._stream is None:
                self._stream = torch.cuda.Stream()
            if not any(replay.is_graph for replay in self._recorded.values()):
                # A pool ends with the last graph that uses it, and none may be recorded into it from then on.
                self._pool = torch.cuda.graph_pool_handle()
            before, found = torch.cuda.current_stream(), _Found()
            self._stream.wait_stream(before)
            with torch.cuda.stream(self._stream):
                # Nothing may be compiled nor a library's workspace taken while a graph is being recorded.
                with found:
                    function()
                graph = torch.cuda.CUDAGraph()
                run: Callable[[], None] = graph.replay
                try:
                    # Other threads go on: they load recordings.
                    with torch.cuda.graph(
                        graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                    ):
                        function()
                except RuntimeError as error:
                    warnings.warn(
                        f"fastspeech: a step runs without a CUDA graph, correct but slower ({error})",
                        RuntimeWarning,
                        stacklevel=2,
                    )
                    run = function
            before.wait_stream(self._stream)
        return _Replay(run, found.tensors, run is not function)


class _Replay:
    """What is called, and the tensors it reads, whose addresses are in it: they stay as long as it does."""

    def __init__(self, run: Callable[[], None], tensors: list[Tensor], is_graph: bool) -> None:
        self.run, self.is_graph = run, is_graph
        self._tensors = tensors


class _Found(TorchDispatchMode):
    """Collects the tensors that are there before the work that it is entered for.

    Attributes:
        tensors: those that an operation was given and none returned.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self._seen: set[int] = set()
        self._made: list[Tensor] = []  # whose identities must not be given out again

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._made.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._note(given, self.tensors)
        result = func(*args, **(kwargs or {}))
        self._note([leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)], self._made)
        return result

    def _note(self, tensors: list[Tensor], into: list[Tensor]) -> None:
        new = [tensor for tensor in tensors if id(tensor) not in self._seen]
        self._seen.update(map(id, new))
        into += new


class Turns:
    """Calls that wait for one another, from whatever threads they come, and on a device in whatever streams."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stream: torch.cuda.Stream | None = None

    @contextmanager
    def take(self, device: torch.device) -> Iterator[None]:
        """Have a turn: what is launched in it comes behind what was launched in the last one."""
        with self._lock:
            if device.type == "cuda":
                stream = torch.cuda.current_stream(device)
                if self._stream is not None and self._stream != stream:
                    stream.wait_stream(self._stream)
                self._stream = stream
            yield


def next_power_of_two(count: int) -> int:
    """The least power of two that is not below a positive count."""
    return 1 << (count - 1).bit_length()


def bucket_of(rows: int, most: int) -> int:
    """The rows of a recorded step for so many: the next power of two, or all there may be."""
    return min(next_power_of_two(rows), most)


def staged(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host where a copy of it to a device need not be waited for: in pinned memory, for a GPU."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on a device, without a wait for the device."""
    return staged(tensor, device).to(device, non_blocking=True)
