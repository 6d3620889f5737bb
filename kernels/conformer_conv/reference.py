"""The Conformer convolution module between its two pointwise projections, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def conformer_conv(x: Tensor, weight: Tensor, bias: Tensor, lengths: Tensor | None) -> Tensor:
    gated = F.glu(x, dim=-1)
    if lengths is not None:
        # A fill, not a product: what lies behind a row's end may be NaN.
        valid = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        gated = gated.masked_fill(~valid[..., None], 0)
    channels, taps = weight.shape
    y = F.conv1d(gated.transpose(1, 2), weight[:, None], bias, padding=taps // 2, groups=channels)
    return F.silu(y).transpose(1, 2).contiguous()
