"""The Transformer decoder of CohereAsr (NeMo Canary's), with the parameter names of transformers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastspeech.generation.cache import DecoderCache
from fastspeech.layers.activations import activation
from fastspeech.layers.attention import attention
from fastspeech.layers.derived import DerivingModule
from fastspeech.layers.linear import PackedLinear, direct
from fastspeech.layers.residual import add_and_norm
from fastspeech.models.cohere_asr.config import CohereAsrConfig


class Attention(DerivingModule):
    """The projections of an attention sublayer."""

    def __init__(self, config: CohereAsrConfig) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.attention_bias
        inner, kv_inner = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(width, inner, bias)
        self.k_proj = nn.Linear(width, kv_inner, bias)
        self.v_proj = nn.Linear(width, kv_inner, bias)
        self.o_proj = nn.Linear(inner, width, bias)
        self._packed = PackedLinear()

    def qkv(self) -> Callable[[Tensor], Tensor]:
        """The function that gives queries, keys and values, concatenated over the last axis."""
        return self._packed.function((self.q_proj, self.k_proj, self.v_proj))


class MLP(nn.Module):
    def __init__(self, config: CohereAsrConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = activation(config.hidden_act)


class Layer(nn.Module):
    """The parameters of one layer, which `CohereAsrDecoder.run` runs."""

    def __init__(self, config: CohereAsrConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.encoder_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size)
        self.final_layernorm = nn.LayerNorm(config.hidden_size)


Linear = Callable[[Tensor], Tensor]
AddAndNorm = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Step:
    """A layer as functions: a decoding step would spend half its time on looking up and calling modules.

    The layer's end is joined to the norm that follows it.
    """

    __slots__ = ("act", "cross_out", "cross_q", "down", "norm_cross", "norm_mlp", "norm_next", "out", "qkv", "up")

    def __init__(self, layer: Layer, next_norm: nn.LayerNorm) -> None:
        self.qkv: Linear = layer.self_attn.qkv()
        self.out: Linear = direct(layer.self_attn.o_proj)
        self.norm_cross: AddAndNorm = add_and_norm(layer.post_attention_layernorm)
        self.cross_q: Linear = direct(layer.encoder_attn.q_proj)
        self.cross_out: Linear = direct(layer.encoder_attn.o_proj)
        self.norm_mlp: AddAndNorm = add_and_norm(layer.final_layernorm)
        self.up: Linear = direct(layer.mlp.fc1)
        self.act = layer.mlp.activation
        self.down: Linear = direct(layer.mlp.fc2)
        self.norm_next: AddAndNorm = add_and_norm(next_norm)


class Decoding(DecoderCache):
    """The cache of a run of `decode`, with the layers as functions of the parameters the run began with."""

    def __init__(self, steps: list[Step], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps = steps


@dataclass
class Record:
    """What a pass through the decoder leaves behind for those who ask for it.

    hidden_states: one (B, n, hidden) for the input and one a layer, the last of them normalised; attentions: one
    (B, heads, n, tokens) a layer; cross_attentions: one (B, heads, n, frames) a layer.
    """

    with_states: bool = False
    with_weights: bool = False
    hidden_states: list[Tensor] = field(default_factory=list)
    attentions: list[Tensor] = field(default_factory=list)
    cross_attentions: list[Tensor] = field(default_factory=list)


class CohereAsrDecoder(DerivingModule):
    """Tokens and encoder frames to hidden states.

    A new model's position table holds NeMo's fixed sinusoids, and its embeddings have their scale.
    """

    def __init__(self, config: CohereAsrConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.pos_emb = nn.Embedding(config.max_position_embeddings, width)
        self.embedding_layernorm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(config.encoder_config.hidden_size, width)
        self._cross = PackedLinear()
        with torch.no_grad():
            self.embed_tokens.weight.mul_(width**-0.5)
            self.pos_emb.weight.copy_(_sinusoids(config.max_position_embeddings, width))

    def cross_keys_values(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all layers, each (layers, B, kv_heads, frames, head_dim), of encoded (B, frames, width).

        One product for the projection to the decoder's width and one for all layers.
        """
        cross = [layer.encoder_attn for layer in self._layers()]
        maps = [linear for attention in cross for linear in (attention.k_proj, attention.v_proj)]
        both = self._cross.function(maps)(self.proj(encoded))
        both = both.unflatten(-1, (len(cross), 2, self.config.num_key_value_heads, self.config.head_dim))
        keys, values = both.permute(3, 2, 0, 4, 1, 5).contiguous().unbind(0)
        return keys, values

    def positions(self, start: int, count: int) -> Tensor:
        """(count, hidden), the position embeddings from `start` on.

        Raises:
            ValueError: more positions than the model has.
        """
        most = self.config.max_position_embeddings
        if start + count > most:
            raise ValueError(f"the decoder has {most} positions; {start + count} tokens do not fit")
        return self.pos_emb.weight[start : start + count]

    def steps(self) -> list[Step]:
        """The layers as functions of their present parameters."""
        layers = self._layers()
        following = [*(layer.input_layernorm for layer in layers[1:]), self.norm]
        return [Step(layer, norm) for layer, norm in zip(layers, following, strict=True)]

    def _layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.layers))

    def run(
        self,
        steps: list[Step],
        x: Tensor,
        cross_keys: Sequence[Tensor],
        cross_values: Sequence[Tensor],
        cross_lengths: Tensor | None,
        token_mask: Tensor | None = None,
        cache: DecoderCache | None = None,
        record: Record | None = None,
    ) -> Tensor:
        """Hidden states (rows, n, hidden) of n tokens a row, after the last norm.

        Args:
            steps: what `steps` returns.
            x: (rows, n, hidden), token and position embeddings, summed. rows = inputs * k: the k rows of one input
                share its cross-attention keys and values, as queries side by side.
            cross_keys, cross_values: by layer, (inputs, kv_heads, frames, head_dim).
            cross_lengths: (inputs,), valid frames; None where all are.
            token_mask: (rows, tokens so far), true at tokens that may be attended to; None where all may.
            cache: what was read before, grown by these tokens; None where nothing was.
            record: takes what is asked of it.
        """
        config = self.config
        heads, kv_heads, head_dim = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        rows, count, _ = x.shape
        inputs, _, frames, _ = cross_keys[0].shape
        record = Record() if record is None else record
        dropout = config.attention_dropout if self.training else 0.0
        mask = _token_mask(count, 0 if cache is None else cache.length, token_mask, x.device)
        causal = count > 1 and mask is None
        cross_mask = None
        if cross_lengths is not None:
            padding = torch.arange(frames, device=x.device) >= cross_lengths[:, None]
            cross_mask = torch.zeros_like(padding, dtype=x.dtype).masked_fill(padding, -torch.inf)[:, None, None]
        x = self.embedding_layernorm(x)
        h = self._layers()[0].input_layernorm(x)
        for index, step in enumerate(steps):
            if record.with_states:
                record.hidden_states.append(x)
            by_head = step.qkv(h).view(rows, count, -1, head_dim).transpose(1, 2)
            q, k, v = by_head.split([heads, kv_heads, kv_heads], dim=1)
            if cache is not None:
                k, v = cache.append(index, k, v)
            y, weights = attention(q, k, v, mask, causal, dropout, record.with_weights)
            x, h = step.norm_cross(x, step.out(y))
            q = step.cross_q(h).view(inputs, -1, heads, head_dim).transpose(1, 2)
            k, v = cross_keys[index], cross_values[index]
            y, cross_weights = attention(q, k, v, cross_mask, False, dropout, record.with_weights)
            x, h = step.norm_mlp(x, step.cross_out(y.view(rows, count, -1)))
            x, h = step.norm_next(x, step.down(step.act(step.up(h))))
            if weights is not None and cross_weights is not None:
                record.attentions.append(weights)
                by_row = cross_weights.unflatten(2, (-1, count)).transpose(1, 2)
                record.cross_attentions.append(by_row.reshape(rows, heads, count, frames))
        if record.with_states:
            record.hidden_states.append(h)
        if cache is not None:
            cache.advance(count)
        return h


def _sinusoids(positions: int, width: int) -> Tensor:
    """(positions, width): sin(p w_k) and cos(p w_k) interleaved, w_k = 10000^(-2k / width), divided by sqrt(width)."""
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width] / width**0.5


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
