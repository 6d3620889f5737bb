"""Transformer-XL relative-position attention in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def relpos_attention(
    q: Tensor, k: Tensor, v: Tensor, r: Tensor, bias_u: Tensor, bias_v: Tensor, lengths: Tensor | None, scale: float
) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    frames = q.shape[2]
    raw = (q + bias_v[:, None]) @ r.permute(1, 2, 0)
    # Row i of the shifted scores starts at column frames - 1 - i of the raw ones: a step of one column less a row.
    batch, heads, _, columns = raw.shape
    raw = raw.contiguous()
    position = raw.as_strided(
        (batch, heads, frames, frames),
        (raw.stride(0), raw.stride(1), columns - 1, 1),
        raw.storage_offset() + frames - 1,
    ) * scale
    if lengths is not None:
        keys = torch.arange(frames, device=q.device) < lengths[:, None]
        position = position.masked_fill(~keys[:, None, None], -torch.inf)
        k, v = (t.masked_fill(~keys[:, None, :, None], 0) for t in (k, v))
    out = F.scaled_dot_product_attention(q + bias_u[:, None], k, v, attn_mask=position, scale=scale)
    if lengths is not None:
        # Scores of a row without keys are all -inf; what a backend of SDPA makes of them differs.
        out = out.masked_fill((lengths == 0)[:, None, None, None], 0)
    return out.transpose(1, 2).contiguous()
