"""The Transformer decoder of CohereAsr (NeMo Canary's), with the parameter names of transformers."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from fastspeech.layers.activations import activation
from fastspeech.layers.attention import Projections
from fastspeech.layers.decoder import Decoder, Entry, Step
from fastspeech.layers.linear import direct
from fastspeech.layers.relaid import Map, Product
from fastspeech.layers.residual import add_and_norm
from fastspeech.models.cohere_asr.config import CohereAsrConfig


class MLP(nn.Module):
    def __init__(self, config: CohereAsrConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = activation(config.hidden_act)

    def function(self, product: Product) -> Map:
        """The sublayer as a function of its present parameters."""
        up, act, down = product(self.fc1), self.activation, product(self.fc2)
        return lambda h: down(act(up(h)))


class Layer(nn.Module):
    """The parameters of one layer, which `Decoder.run` runs."""

    def __init__(self, config: CohereAsrConfig) -> None:
        super().__init__()
        width, bias = config.hidden_size, config.attention_bias
        sizes = (width, config.num_attention_heads, config.num_key_value_heads, config.head_dim)
        self.self_attn = Projections(*sizes, bias, bias)
        self.encoder_attn = Projections(*sizes, bias, bias)
        self.mlp = MLP(config)
        self.input_layernorm = nn.LayerNorm(width)
        self.post_attention_layernorm = nn.LayerNorm(width)
        self.final_layernorm = nn.LayerNorm(width)

    def step(self, next_norm: nn.LayerNorm, product: Product | None) -> Step:
        """The layer as functions of its present parameters (see `Decoder.steps`)."""
        single = product or direct
        return Step(
            qkv=self.self_attn.qkv(product),
            out=single(self.self_attn.o_proj),
            norm_cross=add_and_norm(self.post_attention_layernorm),
            cross_q=single(self.encoder_attn.q_proj),
            cross_out=single(self.encoder_attn.o_proj),
            norm_mlp=add_and_norm(self.final_layernorm),
            mlp=self.mlp.function(single),
            norm_next=add_and_norm(next_norm),
        )


class CohereAsrDecoder(Decoder):
    """Tokens and encoder frames to hidden states.

    A new model's position table holds NeMo's fixed sinusoids, and its embeddings have their scale.
    """

    def __init__(self, config: CohereAsrConfig) -> None:
        super().__init__()
        self.config = config
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.dropout = config.head_dim, config.attention_dropout
        width = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, width, config.pad_token_id)
        self.pos_emb = nn.Embedding(config.max_position_embeddings, width)
        self.embedding_layernorm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(width)
        self.proj = nn.Linear(config.encoder_config.hidden_size, width)
        with torch.no_grad():
            self.embed_tokens.weight.mul_(width**-0.5)
            self.pos_emb.weight.copy_(_sinusoids(config.max_position_embeddings, width))

    def cross_maps(self) -> list[nn.Linear]:
        cross = [layer.encoder_attn for layer in self._layers()]
        return [linear for attention in cross for linear in (attention.k_proj, attention.v_proj)]

    def cross_keys_values(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """As `Decoder.cross_keys_values`, from the encoder's width to the decoder's first."""
        return super().cross_keys_values(self.proj(encoded))

    def enter(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor | None, past: int
    ) -> Entry:
        """As `Decoder.enter`.

        Raises:
            ValueError: more positions than the model has.
        """
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if position_ids is None:
            most, end = self.config.max_position_embeddings, past + x.shape[1]
            if end > most:
                raise ValueError(f"the decoder has {most} positions; {end} tokens do not fit")
            x = x + self.pos_emb.weight[past:end]
        else:
            x = x + self.pos_emb(position_ids)
        x = self.embedding_layernorm(x)
        return Entry(x, cast(Layer, self.layers[0]).input_layernorm(x))

    def steps(self, product: Product | None = None) -> list[Step]:
        layers = self._layers()
        following = [*(layer.input_layernorm for layer in layers[1:]), self.norm]
        return [layer.step(norm, product) for layer, norm in zip(layers, following, strict=True)]

    def _layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.layers))


def _sinusoids(positions: int, width: int) -> Tensor:
    """(positions, width): sin(p w_k) and cos(p w_k) interleaved, w_k = 10000^(-2k / width), divided by sqrt(width)."""
    rates = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
    angles = torch.arange(positions, dtype=torch.float32)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width] / width**0.5
