"""page_append by the extension: csrc/pages.cpp and csrc/pages.cu."""

from __future__ import annotations

import torch
from torch import Tensor


def launch(
    keys: Tensor,
    values: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    table: Tensor | None,
    positions: Tensor,
    counts: Tensor | None,
    inv_freq: Tensor | None,
    interleaved: bool,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
) -> None:
    torch.ops.fastspeech_csrc.page_append(
        keys,
        values,
        key_pages,
        value_pages,
        None if table is None else table.contiguous(),
        positions.contiguous(),
        None if counts is None else counts.long().contiguous(),
        None if inv_freq is None else inv_freq.float().contiguous(),
        interleaved,
        None if key_scales is None else key_scales.float().contiguous(),
        None if value_scales is None else value_scales.float().contiguous(),
    )
