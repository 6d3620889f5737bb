"""CUDA graphs on the CPU: what a function does is taken down operation by operation, and done again on the same
memory without the function. What it took from the host stays as it was, which is what makes a graph go wrong."""

import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastspeech.generation import graphs, mixin
from fastspeech.kernels import dispatch
from fastspeech.layers import linear, padding, recorded_encoder
from fastspeech.layers.decoder import Decoder
from fastspeech.models.moonshine import encoder as moonshine_encoder


class Tape(TorchDispatchMode):
    """Takes down operations, and does them again."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def play(self) -> None:
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class TapedGraph:
    """Stands for `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.tape: Tape | None = None

    def replay(self) -> None:
        assert self.tape is not None
        self.tape.play()


class Stream:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def wait_stream(self, other: "Stream") -> None:
        self.log.append(f"{self.name} waits for {other.name}")


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Encoding and greedy decoding as for CUDA tensors, with graphs that are tapes. Returns a list to which is written
    what was asked of torch.cuda."""
    log: list[str] = []
    current = [Stream(log, "main")]
    handles = itertools.count(7)
    in_pool: dict[int, weakref.WeakSet[TapedGraph]] = {}

    @contextmanager
    def stream(entered: Stream) -> Iterator[None]:
        log.append(f"on {entered.name}")
        current.append(entered)
        yield
        current.pop()

    @contextmanager
    def graph(made: TapedGraph, pool: Any, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        log.append(f"record on {stream.name} into pool {pool}, {capture_error_mode}")
        assert pool not in in_pool or in_pool[pool], "PyTorch ends a pool with the last graph recorded into it"
        in_pool.setdefault(pool, weakref.WeakSet()).add(made)
        with Tape() as made.tape:
            yield

    monkeypatch.setattr(graphs, "captures", lambda device: True)
    for name, value in (
        ("device", lambda device: nullcontext()),
        ("Stream", lambda: Stream(log, "side")),
        ("current_stream", lambda: current[-1]),
        ("graph_pool_handle", lambda: next(handles)),
        ("CUDAGraph", TapedGraph),
        ("stream", stream),
        ("graph", graph),
    ):
        monkeypatch.setattr(torch.cuda, name, value)
    as_on_a_device(monkeypatch)
    return log


def as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding and greedy decoding as for CUDA tensors, but for the graphs; ops are opaque, and weights lie as they do
    there."""
    monkeypatch.setattr(mixin, "serves", lambda device: True)
    monkeypatch.setattr(recorded_encoder, "serves", lambda device: True)
    monkeypatch.setattr(padding, "readable", lambda x: False)
    monkeypatch.setattr(moonshine_encoder, "through_onednn", lambda weight: False)
    monkeypatch.setattr(dispatch, "choose_inline", lambda op, args: False)
    monkeypatch.setattr(linear, "through_onednn", lambda weight: False)
    monkeypatch.setattr(Decoder, "product", lambda self, rows: None)


def no_graphs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    as_on_a_device(monkeypatch)
    return []


WAYS: dict[str, Callable[[pytest.MonkeyPatch], list[str]]] = {"eager": no_graphs, "graphs": as_on_a_gpu}
