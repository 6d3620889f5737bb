"""embed_sum as one read of each embedding.

A program sums BLOCK components of one token: a thread reads 16 bytes of bfloat16 of every column and adds them up by
itself. The columns are unrolled, so that no read waits for another, but for the ids before the embeddings.

A frame of Kyutai STT 2.6B gathers 33 x 4 kB. At 64 streams that is 9 MB, 2 us at an H200's 4.3 TB/s, where an embedding
operator would write all of it and a sum read it again.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastspeech.kernels.launch import on_device_of

BLOCK = 256


@triton.jit(do_not_specialize=["pad_id", "entries"])
def _embed_sum(
    ids,
    table,
    offsets,
    out,
    pad_id,
    entries,
    STRIDE: tl.constexpr,
    HIDDEN: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    BLOCKS: tl.constexpr = (HIDDEN + BLOCK - 1) // BLOCK
    token = (tl.program_id(0) // BLOCKS).to(tl.int64)
    h = tl.program_id(0) % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    # Triton's interpreter takes no mask in which a comparison of scalars is broadcast.
    everywhere = tl.zeros((BLOCK,), tl.int64)
    for column in tl.static_range(COLUMNS):
        entry = tl.load(ids + token * COLUMNS + column)
        entry = tl.where(entry == pad_id, entry, entry + tl.load(offsets + column))
        entry += everywhere
        inside = (h < HIDDEN) & (entry >= 0) & (entry < entries)
        total += tl.load(table + entry * STRIDE + h, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * HIDDEN + h, total, mask=h < HIDDEN)


def launch(ids: Tensor, table: Tensor, offsets: Tensor, pad_id: int) -> Tensor:
    table = table if table.stride(1) == 1 else table.contiguous()
    entries, hidden = table.shape
    columns = ids.shape[-1]
    out = table.new_empty(*ids.shape[:-1], hidden)
    tokens = ids.numel() // columns
    with on_device_of(table):
        _embed_sum[(tokens * triton.cdiv(hidden, BLOCK),)](
            ids.contiguous(),
            table,
            offsets.contiguous(),
            out,
            pad_id,
            entries,
            STRIDE=table.stride(0),
            HIDDEN=hidden,
            COLUMNS=columns,
            BLOCK=BLOCK,
            num_warps=1,
        )
    return out
