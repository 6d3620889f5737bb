"""Scaled dot-product attention, with the weights written out where somebody asks for them, and its projections."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastspeech.layers.derived import DerivingModule
from fastspeech.layers.linear import PackedLinear
from fastspeech.layers.relaid import Product


class Projections(DerivingModule):
    """The projections of an attention sublayer, from and to `width`."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, bias: bool, out_bias: bool) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, heads * head_dim, bias)
        self.k_proj = nn.Linear(width, kv_heads * head_dim, bias)
        self.v_proj = nn.Linear(width, kv_heads * head_dim, bias)
        self.o_proj = nn.Linear(heads * head_dim, width, out_bias)
        self._packed = PackedLinear()

    def qkv(self, product: Product | None = None) -> Callable[[Tensor], Tensor]:
        """The function that gives queries, keys and values, concatenated over the last axis; made by `product` where
        that is given, else of the parameters as they lie."""
        maps = self.q_proj, self.k_proj, self.v_proj
        return self._packed.function(maps) if product is None else product(*maps)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
    with_weights: bool = False,
    head_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """softmax(q k' / sqrt(head_dim)) v, and the weights (batch, heads, queries, keys) where asked for.

    Args:
        q: (batch, heads, queries, head_dim).
        k, v: (batch, kv_heads, keys, head_dim); each key/value head serves heads // kv_heads consecutive heads.
        mask: broadcast to (batch, heads, queries, keys); boolean, true where a query sees a key, or added to scores.
        causal: query i sees keys up to i; without a mask.
        dropout: probability of dropping a weight.
        head_mask: (heads,), a factor of each head's weights.

    Returns:
        (batch, queries, heads * head_dim) and the weights, before dropout, or None.
    """
    groups = q.shape[1] // k.shape[1]
    if not with_weights:
        single = q.shape[2] == 1 < len(q) and groups == 1 and not (causal or dropout or torch.compiler.is_compiling())
        if single and q.dtype == torch.float32 and q.is_cpu and k.is_contiguous() and v.is_contiguous():
            out = _of_single_queries(q, k, v, mask)
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal, enable_gqa=bool(groups > 1))
        if head_mask is not None:
            out = out * head_mask.to(q.dtype)[:, None, None]
        return out.transpose(1, 2).flatten(2), None
    k, v = (side.repeat_interleave(groups, dim=1) for side in (k, v))
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    if causal:
        mask = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        least = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~mask, least) if mask.dtype == torch.bool else (scores + mask).clamp(min=least)
    weights = scores.softmax(-1, dtype=torch.float32).to(q.dtype)
    if head_mask is not None:
        weights = weights * head_mask.to(q.dtype)[:, None, None]
    out = F.dropout(weights, dropout) @ v if dropout else weights @ v
    return out.transpose(1, 2).flatten(2), weights


def _of_single_queries(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """(batch, heads, 1, head_dim), as `attention`. PyTorch's fused kernel for the CPU is made for many queries: where
    each of several rows has one, two products read keys and values 1.1 to 1.6 times as fast."""
    batch, heads, keys, head_dim = k.shape
    scores = torch.bmm(q.reshape(-1, 1, head_dim) * head_dim**-0.5, k.flatten(0, 1).transpose(1, 2))
    if mask is not None:
        scores = scores.view(batch, heads, 1, keys)
        scores = (scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -torch.inf)).flatten(0, 1)
    # As the fused kernel: a query that sees no key gives 0.
    return torch.bmm(torch._safe_softmax(scores, -1), v.flatten(0, 1)).view(batch, heads, 1, head_dim)
