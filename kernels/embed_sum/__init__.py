"""embed_sum: one embedding of each of several token streams, from one table, and their sum."""

from __future__ import annotations

import torch
from torch import Tensor

from fastspeech.kernels import checks
from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.embed_sum.reference import embed_sum as _reference
from fastspeech.kernels.op import Op


def _fake(ids: Tensor, table: Tensor, offsets: Tensor, pad_id: int) -> Tensor:
    return table.new_empty(*ids.shape[:-1], table.shape[1])


def _triton_limits(ids: Tensor, table: Tensor, offsets: Tensor, pad_id: int) -> str | None:
    if table.element_size() > 4:
        return "float64 is served by the reference"
    if ids.shape[-1] > 64:
        return f"{ids.shape[-1]} columns, at most 64 are unrolled"
    return None


_op = Op(
    _reference,
    _fake,
    (Implementation("triton", "fastspeech.kernels.embed_sum.triton", _triton_limits),),
)


def embed_sum(ids: Tensor, table: Tensor, offsets: Tensor, pad_id: int) -> Tensor:
    """Sums of the embeddings of tokens of several vocabularies, which lie in one table behind each other.

    out[..., :] is the sum over columns c of table[ids[..., c] + offsets[c]], where the id `pad_id` is a row of its own
    and not moved: table[pad_id]. Sums are float32 and rounded once (the text token and the audio codes of a frame in
    Moshi, Defossez et al. 2024, section 3.4).

    Args:
        ids: (..., columns), int64.
        table: (entries, hidden), a floating dtype.
        offsets: (columns,), int64, the first entry of each column's vocabulary.
        pad_id: the id that is an entry of the table as it is.

    Returns:
        (..., hidden), in the table's dtype, contiguous.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.
        IndexError: on the CPU, an id outside the table. On a GPU such an id adds nothing.
    """
    checks.rank("table", table, 2, "(entries, hidden)")
    checks.floating(table=table)
    if ids.dim() < 1:
        raise ValueError("ids must have shape (..., columns), got ()")
    checks.shape("offsets", offsets, (ids.shape[-1],), "(columns,)")
    for name, tensor in (("ids", ids), ("offsets", offsets)):
        if tensor.dtype != torch.int64:
            raise TypeError(f"{name} must be int64, got {tensor.dtype}")
        if tensor.device != table.device:
            raise ValueError(f"{name} must be on {table.device}, got {tensor.device}")
    return _op(ids, table, offsets, pad_id)
