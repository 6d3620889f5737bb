"""Transformer-XL relative-position attention in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def relpos_attention(
    q: Tensor, k: Tensor, v: Tensor, r: Tensor, bias_u: Tensor, bias_v: Tensor, lengths: Tensor | None, scale: float
) -> Tensor:
    batch, frames, heads, dim = q.shape
    # One product a head over the queries of all rows: r is the same for them, and is not copied for each.
    queries = (q + bias_v).permute(2, 0, 1, 3).reshape(heads, batch * frames, dim)
    raw = torch.bmm(queries, F.pad(r, (0, 0, 0, 0, 1, 0)).permute(1, 2, 0))
    # Row i of the scores starts at column frames - 1 - i of the raw ones. With a column more in front, these are read
    # as rows of `frames`, and from the second of them on as rows of 2 * frames - 1: each row starts a column earlier.
    rows = raw.reshape(heads, batch, 2 * frames, frames)[:, :, 1:]
    shifted = rows.reshape(heads, batch, frames, 2 * frames - 1)[..., :frames]
    position = scale * shifted.transpose(0, 1)
    q, k, v = (t.transpose(1, 2) for t in (q + bias_u, k, v))
    if lengths is not None:
        keys = torch.arange(frames, device=q.device) < lengths[:, None]
        position = position.masked_fill_(~keys[:, None, None], -torch.inf)
        k, v = (t.masked_fill(~keys[:, None, :, None], 0) for t in (k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=position, scale=scale)
    if lengths is not None:
        # Scores of a row without keys are all -inf; what a backend of SDPA makes of them differs.
        out = out.masked_fill((lengths == 0)[:, None, None, None], 0)
    return out.transpose(1, 2).contiguous()
