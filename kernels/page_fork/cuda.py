"""page_fork by the extension: csrc/pages.cpp and csrc/pages.cu."""

from __future__ import annotations

import torch
from torch import Tensor


def launch(key_pages: Tensor, value_pages: Tensor, sources: Tensor, targets: Tensor) -> None:
    torch.ops.fastspeech_csrc.page_fork(key_pages, value_pages, sources.contiguous(), targets.contiguous())
