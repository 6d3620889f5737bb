"""What Transformer decoders that attend to encoder frames share, whatever they call their parameters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastspeech.generation.cache import DecoderCache
from fastspeech.generation.interface import Record
from fastspeech.kernels.onednn import through_onednn
from fastspeech.layers import int8
from fastspeech.layers.attention import attention
from fastspeech.layers.derived import DerivingModule
from fastspeech.layers.linear import PackedLinear
from fastspeech.layers.relaid import Map, Product, Relaid
from fastspeech.layers.searched import Searched
from fastspeech.layers.seated import Seated

AddAndNorm = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(slots=True)
class Step:
    """A pre-norm layer as functions: a decoding step would spend half its time on looking up and calling modules.

    Each sublayer's end is joined to the norm that follows it, the layer's end to that of the next layer.

    Attributes:
        qkv: queries, keys and values of self-attention, concatenated over the last axis.
        out, cross_out: the projections that leave self- and cross-attention.
        cross_q: the queries of cross-attention.
        mlp: the feed-forward sublayer.
        norm_cross, norm_mlp, norm_next: of (x, delta), x + delta and the norm of it that enters what follows.
        head_mask, cross_head_mask: (heads,) factors of the heads of self- and cross-attention; None for all 1.
    """

    qkv: Map
    out: Map
    norm_cross: AddAndNorm
    cross_q: Map
    cross_out: Map
    norm_mlp: AddAndNorm
    mlp: Map
    norm_next: AddAndNorm
    head_mask: Tensor | None = None
    cross_head_mask: Tensor | None = None


class Decoding(DecoderCache):
    """The cache of a run of `decode`, with layers and head as functions of the parameters the run began with."""

    def __init__(self, steps: list[Step], head: Map, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps = steps
        self.head = head


@dataclass(slots=True)
class Entry:
    """Tokens on their way into the first layer.

    x: (rows, n, hidden), the residual stream; h: x after the first layer's norm; rotate: what turns queries and keys by
    their positions, and leaves values, all in one (rows, n, heads + 2 * kv_heads, head_dim); None where positions are
    in x.
    """

    x: Tensor
    h: Tensor
    rotate: Map | None = None


class Decoder(DerivingModule):
    """Base of the decoders: a subclass makes the modules and says how tokens enter and what a layer consists of.

    Attributes:
        heads, kv_heads, head_dim: of self- and cross-attention.
        dropout: of the attention weights, in training.
        in_int8: whether linear maps are decoded with by weights of eight bits.
    """

    heads: int
    kv_heads: int
    head_dim: int
    dropout: float = 0.0
    in_int8: bool = False

    def __init__(self) -> None:
        super().__init__()
        self._cross = PackedLinear()
        self._relaid = Relaid()
        self.seated = Seated()
        self.searched = Searched()

    def enter(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor | None, past: int
    ) -> Entry:
        """The first layer's input, of ids (rows, n) or embeddings (rows, n, hidden) behind `past` earlier tokens.

        position_ids: (rows, n) or (1, n) int64; None where they count on from `past`.
        """
        raise NotImplementedError

    def steps(self, product: Product | None = None) -> list[Step]:
        """The layers as functions of their present parameters, linear maps made by `product` where it is given."""
        raise NotImplementedError

    def product(self, rows: int) -> Product | None:
        """What makes linear maps for decoding so many rows; None where they are best taken as they are."""
        weight = next(self.parameters())
        if torch.is_grad_enabled():
            return None
        if self.in_int8:
            int8.check(weight)
            return self._relaid.by(int8.in_int8)
        return self._relaid.product(rows) if through_onednn(weight) else None

    def decode_in_int8(self, enable: bool) -> None:
        """See `WithHead.decode_in_int8`."""
        if enable:
            int8.check(next(self.parameters()))
        self.in_int8 = enable
        for kept in (self._relaid, self.seated, self.searched):
            kept.drop()

    def cross_maps(self) -> list[nn.Linear]:
        """The projections to cross-attention's keys and values, of each layer in turn."""
        raise NotImplementedError

    def cross_function(self) -> Map:
        """The projections of `cross_maps` as one."""
        return self._cross.function(self.cross_maps())

    def cross_keys_values(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all layers, each (layers, B, kv_heads, frames, head_dim), of encoded (B, frames, width):
        one product."""
        both = self.cross_function()(encoded)
        both = both.unflatten(-1, (-1, 2, self.kv_heads, self.head_dim))
        keys, values = both.permute(3, 2, 0, 4, 1, 5).contiguous().unbind(0)
        return keys, values

    def run(
        self,
        steps: list[Step],
        input_ids: Tensor | None,
        cross_keys: Sequence[Tensor],
        cross_values: Sequence[Tensor],
        cross_lengths: Tensor | None,
        *,
        inputs_embeds: Tensor | None = None,
        position_ids: Tensor | None = None,
        token_mask: Tensor | None = None,
        cache: DecoderCache | None = None,
        record: Record | None = None,
    ) -> Tensor:
        """Hidden states (rows, n, hidden) of n tokens a row, after the last norm.

        Args:
            steps: what `steps` returns.
            input_ids: (rows, n) int64. rows = inputs * k: the k rows of one input share its cross-attention keys and
                values, as queries side by side.
            cross_keys, cross_values: by layer, (inputs, kv_heads, frames, head_dim).
            cross_lengths: (inputs,), valid frames; None where all are.
            inputs_embeds: (rows, n, hidden) in place of the ids.
            position_ids: as in `enter`.
            token_mask: (rows, tokens so far), true at tokens that may be attended to; None where all may.
            cache: what was read before, grown by these tokens; None where nothing was.
            record: takes what is asked of it.
        """
        heads, head_dim = self.heads, self.head_dim
        sizes = [heads, self.kv_heads, self.kv_heads]
        past = 0 if cache is None else cache.length
        entry = self.enter(input_ids, inputs_embeds, position_ids, past)
        x, h, rotate = entry.x, entry.h, entry.rotate
        rows, count, _ = x.shape
        if cache is not None and token_mask is not None:
            cache.separate()
        owners = rows if cache is None else cache.owners
        inputs, _, frames, _ = cross_keys[0].shape
        record = Record() if record is None else record
        dropout = self.dropout if self.training else 0.0
        shared_mask = None if cache is None else cache.mask(count)
        mask = _token_mask(count, past, token_mask, x.device) if shared_mask is None else shared_mask
        causal = count > 1 and mask is None
        cross_mask = None
        if cross_lengths is not None:
            padding = torch.arange(frames, device=x.device) >= cross_lengths[:, None]
            cross_mask = torch.zeros_like(padding, dtype=x.dtype).masked_fill(padding, -torch.inf)[:, None, None]
        for index, step in enumerate(steps):
            if record.with_states:
                record.hidden_states.append(x)
            by_head = step.qkv(h).view(rows, count, -1, head_dim)
            if rotate is not None:
                by_head = rotate(by_head)
            q, k, v = by_head.view(owners, -1, *by_head.shape[2:]).transpose(1, 2).split_with_sizes(sizes, dim=1)
            if cache is not None:
                k, v = cache.append(index, k, v)
            y, weights = attention(q, k, v, mask, causal, dropout, record.with_weights, step.head_mask)
            x, h = step.norm_cross(x, step.out(y.view(rows, count, -1)))
            q = step.cross_q(h).view(inputs, -1, heads, head_dim).transpose(1, 2)
            k, v = cross_keys[index], cross_values[index]
            y, cross_weights = attention(q, k, v, cross_mask, False, dropout, record.with_weights, step.cross_head_mask)
            x, h = step.norm_mlp(x, step.cross_out(y.view(rows, count, -1)))
            x, h = step.norm_next(x, step.mlp(h))
            if weights is not None and cross_weights is not None:
                record.attentions.append(weights)
                by_row = cross_weights.unflatten(2, (-1, count)).transpose(1, 2)
                record.cross_attentions.append(by_row.reshape(rows, heads, count, frames))
        if record.with_states:
            record.hidden_states.append(h)
        if cache is not None:
            cache.advance(count)
            record.attentions = [cache.by_token(weights) for weights in record.attentions]
        return h


def _token_mask(count: int, past: int, token_mask: Tensor | None, device: torch.device) -> Tensor | None:
    """What `count` tokens see of `past` earlier ones and themselves, broadcast to (rows, heads, count, past + count).

    None where that is everything before each token: all of it for one token, a causal mask for several without past.
    """
    if token_mask is None and (count == 1 or past == 0):
        return None
    mask = torch.ones(count, past + count, dtype=torch.bool, device=device).tril(past)
    if token_mask is None:
        return mask
    if token_mask.shape[1] != past + count:
        raise ValueError(f"decoder_attention_mask has {token_mask.shape[1]} tokens, there are {past + count}")
    return mask & token_mask.bool()[:, None, None]
