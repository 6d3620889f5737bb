"""Encoding a batch clip by clip, where that is faster."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from fastspeech.generation.interface import Record
from fastspeech.layers.padding import readable


def one_by_one(audio: Tensor, record: Record, training: bool) -> bool:
    """Whether to encode the clips of `audio` (B, ...) one by one: in inference on the CPU, which a clip keeps busy, and
    whose caches hold what is computed of one clip but not of a batch; and nothing is computed for padding."""
    recorded = record.with_states or record.with_weights
    return readable(audio) and len(audio) > 1 and not (recorded or training or torch.is_grad_enabled())


def by_clip(clips: Iterable[Tensor], lengths: Tensor | None, frames: int, run: Callable[[Tensor], Tensor]) -> Tensor:
    """`run` of each of the clips (1, frames, width) cut to its length, as one batch (B, frames, width), 0 behind the
    ends.

    Args:
        lengths: (B,), valid frames of each clip; None where all are.
    """
    encoded = []
    for row, clip in enumerate(clips):
        length = frames if lengths is None else int(lengths[row])
        if length:
            clip = run(clip[:, :length])
        encoded.append(torch.nn.functional.pad(clip[:, :length], (0, 0, 0, frames - length)))
    return torch.cat(encoded)
