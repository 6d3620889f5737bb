"""page_fork: copies of pages of a cache, for a row that is to go on from another row's past."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastspeech.kernels import checks
from fastspeech.kernels.dispatch import Implementation
from fastspeech.kernels.op import Op
from fastspeech.kernels.page_fork.reference import page_fork as _reference


def _limits(key_pages: Tensor, *rest: Any) -> str | None:
    return None if key_pages.element_size() in (1, 2, 4) else f"{key_pages.dtype} is served by the reference"


_op = Op(
    _reference,
    lambda *args: None,
    (
        Implementation("triton", "fastspeech.kernels.page_fork.triton", _limits),
        Implementation("cuda", "fastspeech.kernels.page_fork.cuda", _limits, on_cpu=True),
    ),
    mutates=("key_pages", "value_pages"),
)


def page_fork(key_pages: Tensor, value_pages: Tensor, sources: Tensor, targets: Tensor) -> None:
    """Copy pages: the copy of copy-on-write, when rows that share a page go different ways (Kwon et al. 2023, 4.4).

    Args:
        key_pages, value_pages: (pages, kv_heads, page_size, head_dim), any strides; written into.
        sources, targets: (copies,) int64: page sources[i] is copied to page targets[i], and nothing where sources[i]
            is negative; targets[i] is a page all the same.

    The targets of a call are different pages, and no target is a source.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.
        RuntimeError: a gradient is to be recorded, of which this op has none.
    """
    checks.pages(key_pages, value_pages)
    for name, pages in (("sources", sources), ("targets", targets)):
        checks.shape(name, pages, (sources.numel(),), "(copies,)")
        if pages.dtype != torch.int64 or pages.device != key_pages.device:
            raise TypeError(f"{name} must be int64 on {key_pages.device}, got {pages.dtype} on {pages.device}")
    return _op(key_pages, value_pages, sources, targets)
