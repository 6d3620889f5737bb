"""Copies of pages, in plain PyTorch."""

import torch
from torch import Tensor


def page_fork(key_pages: Tensor, value_pages: Tensor, sources: Tensor, targets: Tensor) -> None:
    if len(sources) == 0:
        return
    real = sources >= 0
    # What is not to be copied repeats a copy that is, or where there is none puts back what it finds.
    pair = torch.where(real, torch.arange(len(sources), device=sources.device), real.int().argmax())
    target = targets[pair]
    source = torch.where(real.any(), sources[pair], target)
    for pages in (key_pages, value_pages):
        pages[target] = pages[source]
