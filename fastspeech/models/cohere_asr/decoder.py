"""The Transformer decoder of CohereAsr (NeMo Canary's), with the parameter names of transformers."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastspeech.generation.cache import DecoderCache
from fastspeech.layers.activations import activation
from fastspeech.layers.attention import attention
from fastspeech.layers.derived import DerivingModule, PackedLinear
from fastspeech.layers.residual import add_and_norm
from fastspeech.models.cohere_asr.config import CohereAsrConfig


class Attention(DerivingModule):
    """The four projections of an attention sublayer."""

    def __init__(self, config: CohereAsrConfig) -> None:
        super().__init__()
        width, bias, self.head_dim = config.hidden_size, config.attention_bias, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(width, self.heads * self.head_dim, bias)
        self.k_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias)
        self.v_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, width, bias)
        self._packed = PackedLinear()

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, heads, n, head_dim), keys and values (B, kv_heads, n, head_dim) of x (B, n, hidden)."""
        packed = self._packed(x, (self.q_proj, self.k_proj, self.v_proj))
        by_head = packed.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = by_head.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        return q, k, v


class MLP(nn.Module):
    def __init__(self, config: CohereAsrConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = activation(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Layer(nn.Module):
    """The parameters of one layer. `CohereAsrDecoder` runs them, each sublayer's end joined to the next one's norm."""

    def __init__(self, config: CohereAsrConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.encoder_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size)
        self.final_layernorm = nn.LayerNorm(config.hidden_size)


@dataclass
class Record:
    """What a pass through the decoder leaves behind for those who ask for it.

    hidden_states: one (B, n, hidden) for the input and one a layer, the last of them normalised; attentions: one
    (B, heads, n, tokens) a layer; cross_attentions: one (B, heads, n, frames) a layer.
    """

    with_states: bool = False
    with_weights: bool = False
    hidden_states: list[Tensor] = field(default_factory=list)
    attentions: list[Tensor | None] = field(default_factory=list)
    cross_attentions: list[Tensor | None] = field(default_factory=list)


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
        maps = [linear for layer in self.layers for linear in (layer.encoder_attn.k_proj, layer.encoder_attn.v_proj)]
        both = self._cross(self.proj(encoded), maps)
        both = both.unflatten(-1, (len(self.layers), 2, self.config.num_key_value_heads, self.config.head_dim))
        keys, values = both.permute(3, 2, 0, 4, 1, 5).contiguous().unbind(0)
        return keys, values

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token embeddings (B, n, hidden) of ids (B, n), without positions."""
        return self.embed_tokens(input_ids)

    def positions(self, start: int, count: int) -> Tensor:
        """(count, hidden), the position embeddings from `start` on.

        Raises:
            ValueError: more positions than the model has.
        """
        most = self.config.max_position_embeddings
        if start + count > most:
            raise ValueError(f"the decoder has {most} positions; {start + count} tokens do not fit")
        return self.pos_emb.weight[start : start + count]

    def run(
        self,
        x: Tensor,
        cross_keys: list[Tensor] | Tensor,
        cross_values: list[Tensor] | Tensor,
        cross_lengths: Tensor | None,
        token_mask: Tensor | None,
        cache: DecoderCache | None,
        record: Record,
    ) -> Tensor:
        """Hidden states (rows, n, hidden) of n tokens a row, after the last norm.

        Args:
            x: (rows, n, hidden), token and position embeddings, summed. rows = inputs * k: the k rows of one input
                share its cross-attention keys and values, as queries side by side.
            cross_keys, cross_values: by layer, (inputs, kv_heads, frames, head_dim).
            cross_lengths: (inputs,), valid frames; None where all are.
            token_mask: (rows, tokens so far), true at tokens that may be attended to; None where all may.
            cache: what was read before, grown by these tokens; None where nothing was.
            record: takes what is asked of it.
        """
        rows, count, _ = x.shape
        inputs, _, frames, _ = cross_keys[0].shape
        dropout = self.config.attention_dropout if self.training else 0.0
        past = 0 if cache is None else cache.length
        mask = _token_mask(count, past, token_mask, x.device)
        causal = count > 1 and mask is None
        cross_mask = None
        if cross_lengths is not None:
            cross_mask = (torch.arange(frames, device=x.device) < cross_lengths[:, None])[:, None, None]
        x = self.embedding_layernorm(x)
        following = [layer.input_layernorm for layer in self.layers[1:]] + [self.norm]
        h = self.layers[0].input_layernorm(x)
        for index, (layer, next_norm) in enumerate(zip(self.layers, following, strict=True)):
            if record.with_states:
                record.hidden_states.append(x)
            q, k, v = layer.self_attn.qkv(h)
            if cache is not None:
                k, v = cache.append(index, k, v)
            y, weights = attention(q, k, v, mask, causal, dropout, record.with_weights)
            x, h = add_and_norm(x, layer.self_attn.o_proj(y), layer.post_attention_layernorm)
            q = layer.encoder_attn.q_proj(h).view(inputs, -1, layer.encoder_attn.heads, layer.encoder_attn.head_dim)
            q, k, v = q.transpose(1, 2), cross_keys[index], cross_values[index]
            y, cross_weights = attention(q, k, v, cross_mask, False, dropout, record.with_weights)
            x, h = add_and_norm(x, layer.encoder_attn.o_proj(y.view(rows, count, -1)), layer.final_layernorm)
            x, h = add_and_norm(x, layer.mlp(h), next_norm)
            if record.with_weights:
                record.attentions.append(weights)
                by_row = cross_weights.unflatten(2, (-1, count)).transpose(1, 2)
                record.cross_attentions.append(by_row.reshape(rows, -1, count, frames))
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
    """What `count` tokens see of `past` earlier ones and themselves; None for all of it, or for causal without past."""
    if token_mask is None and (count == 1 or past == 0):
        return None
    mask = torch.ones(count, past + count, dtype=torch.bool, device=device).tril(past)
    if token_mask is None:
        return mask
    if token_mask.shape[1] != past + count:
        raise ValueError(f"decoder_attention_mask has {token_mask.shape[1]} tokens, there are {past + count}")
    return mask & token_mask.bool()[:, None, None]
