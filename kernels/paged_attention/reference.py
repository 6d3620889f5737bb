"""Attention over the pages of a cache, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastspeech.kernels.rope_attention.reference import rotate, turns


def paged_attention(
    q: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    table: Tensor | None,
    positions: Tensor,
    inv_freq: Tensor | None,
    interleaved: bool,
    causal: bool,
    window: int,
    scale: float,
    key_scales: Tensor | None,
    value_scales: Tensor | None,
) -> Tensor:
    tokens, heads = q.shape[1:3]
    at = positions[:, None] + torch.arange(tokens, device=q.device)
    if inv_freq is not None:
        q = rotate(q, turns(inv_freq, at), interleaved)
    kv_heads, page_size = key_pages.shape[1:3]
    slots = reach = page_size * (1 if table is None else table.shape[1])
    # On the CPU values can be looked at: slots that no row has come to need not be read.
    eager = q.device.type == "cpu" and not torch.compiler.is_compiling()
    if eager and len(positions):
        reach = max(1, min(slots, int(positions.max()) + tokens))
    sides = ((key_pages, key_scales), (value_pages, value_scales))
    keys, values = (_of_rows(pages, table, reach, q.dtype, scales) for pages, scales in sides)
    # What a slot holds is the row's last position that falls into it.
    last = positions[:, None] + tokens - 1
    held = last - (last - torch.arange(keys.shape[2], device=q.device)) % slots
    seen = (held >= 0)[:, None].expand(-1, tokens, -1)
    if causal:
        seen = seen & (held[:, None] <= at[:, :, None]) & (positions >= 0)[:, None, None]
    if window:
        seen = seen & (at[:, :, None] - held[:, None] < window)
    # The queries of the heads that share keys lie side by side.
    group = heads // kv_heads
    q = q.unflatten(2, (kv_heads, group)).permute(0, 2, 1, 3, 4).flatten(2, 3)
    unseen = ~seen.any(1)[:, None, :, None]
    seen = seen.repeat_interleave(group, 1)[:, None]

    def attend(keys: Tensor, values: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(q, keys, values, seen, scale=scale)
        # What a backend of SDPA makes of a query that sees no key differs.
        return out.masked_fill(~seen.any(-1, keepdim=True), 0)

    # A weight of 0 keeps out what nobody sees as long as that is finite. To clear it copies the pages, which takes
    # longer than to attend to them, and is left for when it shows to be needed.
    hasty = eager and not torch.is_grad_enabled()
    out = attend(keys, values) if hasty else None
    if out is None or not out.isfinite().all():
        out = attend(*(side.masked_fill(unseen, 0) for side in (keys, values)))
    return out.unflatten(2, (tokens, group)).transpose(1, 2).flatten(2, 3).contiguous()


def _of_rows(pages: Tensor, table: Tensor | None, reach: int, dtype: torch.dtype, scales: Tensor | None) -> Tensor:
    """What the first `reach` slots of each row stand for, in a line, or up to a page more: (rows, kv_heads, slots,
    head_dim)."""
    if table is None:
        held = pages[:, :, :reach]
    else:
        table = table[:, : -(-reach // pages.shape[2])]
        held = pages[table.clamp(0, len(pages) - 1)].transpose(1, 2).flatten(2, 3)
    if scales is not None:
        exact = torch.promote_types(dtype, torch.float32)
        held = held.to(exact) * scales.to(exact)[:, None, None]
    return held.to(dtype)
