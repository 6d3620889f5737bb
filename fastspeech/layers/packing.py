"""Batches of clips of different lengths, encoded without computing the layers for what pads them."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fastspeech.generation.graphs import upload
from fastspeech.generation.interface import Record
from fastspeech.layers.padding import frame_mask, readable

_AT_ONCE = 1024
"""Frames that a CPU takes at a time: of more its caches do not hold what is computed."""
_SHORT = 32
"""Frames of the longest row of a part, below which a CPU calls what takes rows for all of them at once: a call for each
would be dearer than what it computes."""
_WORTHWHILE = 1 << 27
"""Frames of padding times the width squared, of a batch that a GPU packs."""


class Padded:
    """Rows side by side, x (B, frames, ...).

    What takes each frame by itself is given x as it is; what takes rows goes through `each`.

    Args:
        lengths: (B,) int64, valid frames of each row; None where all are.
    """

    def __init__(self, lengths: Tensor | None, frames: int) -> None:
        self.lengths, self.frames = lengths, frames
        self._mask: Tensor | None = None

    def mask(self) -> Tensor | None:
        """(B, frames) bool, true at valid frames; None where all are."""
        if self._mask is None and self.lengths is not None:
            self._mask = frame_mask(self.lengths, self.frames)
        return self._mask

    def each(self, op: "Op", x: Tensor) -> Tensor:
        """`op` of the rows of x."""
        return op(x, self)


class Packed:
    """Rows one behind the other, x (1, total, ...), with nothing between them.

    Args:
        counts: frames of each row.
        one_by_one: whether what takes rows is called for each of them, or for all at once, side by side.
    """

    def __init__(self, counts: Sequence[int], one_by_one: bool, device: torch.device) -> None:
        self.counts, self.frames, self._one_by_one = list(counts), max(counts), one_by_one
        if one_by_one:
            return
        begin, frames = 0, self.frames
        valid, padded = [], []
        for row, count in enumerate(counts):
            valid.append(torch.arange(row * frames, row * frames + count))
            # A row is padded with its own first frame, which is finite where the row is.
            padded.append(F.pad(torch.arange(begin, begin + count), (0, frames - count), value=begin))
            begin += count
        told = upload(torch.cat([torch.tensor(self.counts), *valid, *padded]), device)
        lengths, self._valid, self._padded = told.split([len(counts), begin, len(counts) * frames])
        self._side_by_side = Padded(lengths, frames)

    def each(self, op: "Op", x: Tensor) -> Tensor:
        """`op` of the rows of x."""
        if self._one_by_one:
            return torch.cat([op(row, Padded(None, row.shape[1])) for row in x.split(self.counts, 1)], 1)
        rows = x[0].index_select(0, self._padded).unflatten(0, (len(self.counts), -1))
        return op(rows, self._side_by_side).flatten(0, 1).index_select(0, self._valid)[None]


def side_by_side(valid: Tensor | None, frames: int, device: torch.device) -> Padded:
    """Rows of so many `frames`, (B,) of them `valid`, as layers on `device` are told of them."""
    full = valid is None or (readable(valid) and int(valid.min()) == frames)
    return Padded(None if valid is None or full else valid.to(device), frames)


Rows = Padded | Packed
"""How the rows of a batch lie."""
Op = Callable[[Tensor, Padded], Tensor]
"""What takes rows (n, frames, ...), and how they lie, and gives as many frames of each."""


def counts_of(
    valid: Tensor | None, audio: Tensor, frames: int, width: int, record: Record, training: bool
) -> list[int] | None:
    """The frames of each row, to encode `audio` (B, ...) `packed`; None where that is not to be: where gradients,
    states or weights are recorded, in a graph, where the host does not know them, and where it does not pay.

    A CPU always takes several clips in parts. Packed, a GPU moves the rows of a layer apart and together again: by
    count, and not by measurement, that costs 5 to 15 percent of the layer and launches as long as it takes to multiply
    `_WORTHWHILE` numbers a dozen times.

    Args:
        valid: (B,), frames of each row; None where all `frames` are.
        width: of the frames.
    """
    recorded = record.with_states or record.with_weights or training or torch.is_grad_enabled()
    if recorded or torch.compiler.is_compiling() or not (valid is None or readable(valid)):
        return None
    rows = audio.shape[0]
    counts = [frames] * rows if valid is None else [int(count) for count in valid]
    padding = rows * frames - sum(counts)
    if audio.is_cpu:
        return counts if rows > 1 or padding else None
    return counts if 8 * padding >= rows * frames and padding * width**2 >= _WORTHWHILE else None


def packed(
    stem: Callable[[slice], Tensor],
    layers: Callable[[Tensor, Rows], Tensor],
    counts: Sequence[int],
    frames: int,
    device: torch.device,
) -> Tensor:
    """What leaves `layers` for a batch, (B, frames, width), 0 behind the ends of the rows.

    Args:
        stem: gives of some rows the frames (rows, n, width) that enter the layers: as many as the longest has or more,
            and of a row without any at least one.
        layers: from frames to as many, as they lie.
        counts: frames of each row.
    """
    kept = [max(1, count) for count in counts]
    ended: list[Tensor] = []
    for part in _parts(kept) if device.type == "cpu" else [slice(0, len(kept))]:
        lasting = kept[part]
        one_by_one = device.type == "cpu" and max(lasting) >= _SHORT
        if one_by_one:
            clips = [stem(slice(row, row + 1))[0, : kept[row]] for row in range(len(kept))[part]]
        else:
            clips = [row[:count] for row, count in zip(stem(part), lasting, strict=True)]
        if len(set(lasting)) == 1:
            ended += layers(torch.stack(clips), Padded(None, lasting[0])).unbind()
        else:
            ended += layers(torch.cat(clips)[None], Packed(lasting, one_by_one, device))[0].split(lasting)
    batch = pad_sequence([row[:count] for row, count in zip(ended, counts, strict=True)], batch_first=True)
    return F.pad(batch, (0, 0, 0, frames - batch.shape[1]))


def _parts(counts: Sequence[int]) -> Iterator[slice]:
    """The rows in parts of `_AT_ONCE` frames at most, or of one row."""
    begin, held = 0, 0
    for row, count in enumerate(counts):
        if held and held + count > _AT_ONCE:
            yield slice(begin, row)
            begin, held = row, 0
        held += count
    yield slice(begin, len(counts))
