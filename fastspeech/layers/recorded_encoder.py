"""Encoders of few frames on a GPU: one launch of what was recorded in place of hundreds."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from fastspeech.generation.graphs import Graphs, Turns, next_power_of_two, upload
from fastspeech.generation.seats import serves
from fastspeech.kernels import dispatch
from fastspeech.layers.derived import Kept, Seen, seen, unchanged
from fastspeech.layers.padding import frame_mask
from fastspeech.layers.seated import roomy
from fastspeech.outputs import BaseModelOutput

_MOST = 32
"""Recordings of an encoder that are kept, those used last. Each is a graph of up to a thousand kernels, and memory for
its audio and frames; what is between the two shares one pool."""

_LAUNCH_S = 7e-6
"""What the host takes to launch a product with a matrix and what goes with it: a kernel and a third of 5 us each, as
counted of the three encoders' layers (8 kernels for 6 matrices, 17 for 14)."""

_FLOPS = {torch.float16: 4e14, torch.bfloat16: 4e14, torch.float32: 4e13}
"""What an H200 may do a second of such products: two fifths of its peak in 16 bits, two thirds of it in float32. By
arithmetic, not measured. A smaller GPU is busy with fewer frames."""


class Heard(NamedTuple):
    """What there is of the rows of a batch, and what becomes of it.

    lengths: (B,) int64, of the audio as it is given, what each row hears. valid: (B,) int64, its valid frames. Both are
    where the mask is, and on the host without one. frames: of the whole batch.
    """

    lengths: Tensor
    valid: Tensor
    frames: int


class Recordable(Protocol):
    """An encoder that can be recorded.

    Attributes:
        config: its `hidden_size` is the width of frames.
        recorded: what was recorded of it.
    """

    config: Any
    recorded: RecordedEncoder

    def heard(self, audio: Tensor, mask: Tensor | None, option: Any) -> Heard | None:
        """What `forward` with these arguments makes of audio (B, T0, ...), by a mask (B, T0); None where `padded` does
        not serve them. The host looks at no value."""

    def padded(self, audio: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        """The frames (B, T, width) of audio (B, T0, ...), 0 behind what is heard, by the first two of `Heard`. Valid
        frames do not depend on how much is behind. The host looks at no value; without gradients."""


Key = tuple[Any, ...]


class RecordedEncoder(Kept):
    """An encoder recorded for some numbers of rows and lengths, over memory that stays.

    A batch is given to the next greater of these, where its products take a GPU no longer than the host takes to launch
    them. Recordings are kept until a parameter is replaced or written to. Calls from several threads wait for one
    another.

    Attributes:
        graphs: what is recorded now; None where nothing is.
    """

    def __init__(self) -> None:
        self._turns = Turns()
        self.drop()

    def drop(self) -> None:
        self.graphs: Graphs | None = None
        self._buckets: dict[Key, _Bucket] = {}
        self._seen: list[Seen] = []
        self._memory: list[Tensor] = []
        self._most_frames: float | None = None

    def encode(
        self,
        encoder: Any,
        eager: Callable[[], BaseModelOutput],
        audio: Tensor | None,
        mask: Tensor | None,
        option: Any = None,
    ) -> BaseModelOutput:
        """What an encoder makes of audio (B, T0, ...) and its mask (B, T0), with the mask of its frames where one was
        given: as recorded, or by `eager`, which calls it. Without gradients."""
        if audio is None or not _may_be_recorded(encoder, audio):
            return eager()
        # While one is recorded no other may run: what it derives from weights would lie in the memory of a graph.
        with self._turns.take(audio.device):
            heard = encoder.heard(audio, mask, option)
            if heard is None or not self._is_small(encoder, audio, heard.frames):
                return eager()
            counts = torch.stack((heard.lengths, heard.valid))
            if counts.device != audio.device:
                counts = upload(counts, audio.device)
            bucket = self._bucket(encoder, audio, counts)
            if bucket is None:
                return eager()
            found = bucket.frames[: len(audio), : heard.frames].clone()
        if mask is None:
            return BaseModelOutput(found)
        return BaseModelOutput(found, attention_mask=frame_mask(counts[1], heard.frames).int())

    def _is_small(self, encoder: Any, audio: Tensor, frames: int) -> bool:
        """Whether a batch, with what pads it in its bucket, keeps a GPU busy for no longer than its launches take."""
        if self._most_frames is None:
            self._most_frames = most_frames(encoder)
        rows, length = _sizes(audio)
        return rows * frames * length <= self._most_frames * audio.shape[1]

    def _bucket(self, encoder: Recordable, audio: Tensor, counts: Tensor) -> _Bucket | None:
        """The bucket of a batch, run for it, with counts (2, B) as in `Heard`; None where it is not to be recorded."""
        key = (*_sizes(audio), *audio.shape[2:], audio.dtype, dispatch.backend())
        bucket = self._buckets.pop(key, None)
        if bucket is not None:
            self._buckets[key] = bucket  # as the last one used
            bucket.fill(audio, counts)
            self._present().run(key)
        # To look at all tensors takes a millisecond, in which a GPU is busy.
        held = _held(encoder)
        if held is None:
            return None
        if not self._is_of(held):
            self.drop()
            bucket = None
        return bucket or self._record(key, encoder, audio, counts)

    def _record(self, key: Key, encoder: Recordable, audio: Tensor, counts: Tensor) -> _Bucket:
        """Record a bucket and run it for a batch."""
        graphs = self.graphs = self.graphs or Graphs(audio.device)
        with torch.inference_mode(False), torch.no_grad():
            bucket = _Bucket(encoder, audio, *key[:2])
            bucket.fill(audio, counts)
            graphs.record(key, partial(bucket.run, encoder))
        graphs.run(key)
        # The first run moved parameters together, and may have made a greater table of positions, beside which what was
        # recorded before would keep the smaller one.
        held = cast(list[Tensor], _held(encoder))
        if not self._is_of(held):
            self._forget(list(self._buckets))
            self._seen, self._memory = [seen(tensor) for tensor in held], [tensor.detach() for tensor in held]
        self._buckets[key] = bucket
        self._forget(list(self._buckets)[:-_MOST])
        return bucket

    def _forget(self, keys: list[Key]) -> None:
        for key in keys:
            del self._buckets[key]
            self._present().forget(key)

    def _present(self) -> Graphs:
        assert self.graphs is not None
        return self.graphs

    def _is_of(self, held: list[Tensor]) -> bool:
        """Whether what was recorded was recorded of these tensors, as they are."""
        return len(held) == len(self._seen) and all(map(unchanged, held, self._seen))


class _Bucket:
    """Memory that an encoder reads rows from and writes their frames to.

    Args:
        audio: (B, T0, ...), of a batch.
        rows, length: B and T0 of the bucket.

    Attributes:
        frames: (rows, T, width).
    """

    def __init__(self, encoder: Recordable, audio: Tensor, rows: int, length: int) -> None:
        self._audio = audio.new_zeros(rows, length, *audio.shape[2:])
        self._counts = torch.ones(2, rows, dtype=torch.int64, device=audio.device)
        whole = cast(Heard, encoder.heard(self._audio, None, None))
        self.frames = audio.new_empty(rows, whole.frames, encoder.config.hidden_size)

    def fill(self, audio: Tensor, counts: Tensor) -> None:
        """Take a batch in. Rows behind it stay as they were."""
        rows, length = audio.shape[:2]
        self._audio[:rows, :length] = audio
        self._audio[:rows, length:].zero_()
        self._counts[:, :rows] = counts

    def run(self, encoder: Recordable) -> None:
        """Encode what was taken in."""
        self.frames.copy_(encoder.padded(self._audio, *self._counts))


def _may_be_recorded(encoder: Any, audio: Tensor) -> bool:
    if audio.numel() == 0 or not serves(audio.device) or audio.dtype not in _FLOPS:
        return False
    changed = torch.compiler.is_compiling() or torch.is_autocast_enabled(audio.device.type)
    return not (changed or encoder.training)


def _sizes(audio: Tensor) -> tuple[int, int]:
    """The rows and the length of the bucket of audio (B, T0, ...)."""
    return next_power_of_two(len(audio)), roomy(audio.shape[1])


def most_frames(encoder: nn.Module) -> float:
    """How many frames a GPU multiplies with the matrices of an encoder while the host launches that."""
    matrices = [parameter for parameter in encoder.parameters() if parameter.dim() > 1]
    operations = 2 * sum(matrix.numel() for matrix in matrices) / len(matrices)
    return _LAUNCH_S * _FLOPS[matrices[0].dtype] / operations


def _held(encoder: Any) -> list[Tensor] | None:
    """All tensors of an encoder, and those it keeps beside its parameters; None where a module is called in a way that
    a recording would pass by: somebody hooked into it, or had it compiled."""
    found = [value for value in vars(encoder).values() if isinstance(value, Tensor)]
    modules: list[nn.Module] = [encoder]
    for module in modules:
        hooked = module._forward_hooks or module._forward_pre_hooks
        if hooked or module._compiled_call_impl is not None or "_orig_mod" in module._modules:
            return None
        for tensors in (module._parameters, module._buffers):
            found += [tensor for tensor in tensors.values() if tensor is not None]
        modules += [child for child in module._modules.values() if child is not None]
    return found
