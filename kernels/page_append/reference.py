"""New keys and values written into pages, in plain PyTorch."""

import torch
from torch import Tensor

from fastspeech.kernels.rope_attention.reference import rotate, turns


def page_append(
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
    rows, tokens = keys.shape[:2]
    if rows * tokens == 0:
        return
    step = torch.arange(tokens, device=keys.device)
    at = positions[:, None] + step
    if inv_freq is not None:
        keys = rotate(keys, turns(inv_freq, at), interleaved)
    pages, page_size = len(key_pages), key_pages.shape[2]
    if table is None:
        page = torch.arange(rows, device=keys.device)[:, None].expand(rows, tokens)
    else:
        page = table.long().gather(1, at // page_size % table.shape[1]).clamp(0, pages - 1)
    real = (positions >= 0)[:, None].expand(rows, tokens)
    if counts is not None:
        real = real & (step < counts[:, None])
    # A token that is not to be written repeats one that is, or where there is none puts back what it finds: neither
    # masks nor shapes depend on how many are real.
    real = real.flatten()
    token = torch.where(real, torch.arange(rows * tokens, device=keys.device), real.int().argmax())
    page, slot = page.flatten()[token], (at % page_size).flatten()[token]
    for new, old, scales in ((keys, key_pages, key_scales), (values, value_pages, value_scales)):
        stored = _as_stored(new.flatten(0, 1)[token], old.dtype, scales)
        if old.element_size() == 1:
            # What PyTorch does not do with such numbers it does with their bytes.
            stored, old = stored.view(torch.uint8), old.view(torch.uint8)
        old[page, :, slot] = torch.where(real.any(), stored, old[page, :, slot])


def _as_stored(x: Tensor, dtype: torch.dtype, scales: Tensor | None) -> Tensor:
    """x (..., kv_heads, head_dim) over the scales of its heads, as a page holds it."""
    exact = torch.promote_types(x.dtype, torch.float32)
    if scales is not None:
        x = x.to(exact) / scales.to(exact)[:, None]
    if dtype == torch.float8_e4m3fn:
        most = torch.finfo(dtype).max
        x = x.to(exact).clamp(-most, most)
    return x.to(dtype)
