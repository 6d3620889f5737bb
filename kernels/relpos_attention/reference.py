"""Transformer-XL relative-position attention in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def relpos_attention(
    q: Tensor, k: Tensor, v: Tensor, r: Tensor, bias_u: Tensor, bias_v: Tensor, lengths: Tensor | None, scale: float
) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    batch, heads, frames, _ = q.shape
    # Row i of the scores starts at column frames - 1 - i of the raw ones. With a column more in front, these are read
    # as rows of `frames`, and from the second of them on as rows of 2 * frames - 1: each row starts a column earlier.
    raw = (q + bias_v[:, None]) @ F.pad(r, (0, 0, 0, 0, 1, 0)).permute(1, 2, 0)
    rows = raw.reshape(batch, heads, 2 * frames, frames)[:, :, 1:]
    position = rows.reshape(batch, heads, frames, 2 * frames - 1)[..., :frames] * scale
    if lengths is not None:
        keys = torch.arange(frames, device=q.device) < lengths[:, None]
        position = position.masked_fill(~keys[:, None, None], -torch.inf)
        k, v = (t.masked_fill(~keys[:, None, :, None], 0) for t in (k, v))
    out = F.scaled_dot_product_attention(q + bias_u[:, None], k, v, attn_mask=position, scale=scale)
    if lengths is not None:
        # Scores of a row without keys are all -inf; what a backend of SDPA makes of them differs.
        out = out.masked_fill((lengths == 0)[:, None, None, None], 0)
    return out.transpose(1, 2).contiguous()
