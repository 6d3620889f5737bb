"""Moonshine's decoder, with the parameter names of transformers."""

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from fastspeech.layers.activations import activation
from fastspeech.layers.attention import Projections
from fastspeech.layers.decoder import Decoder, Entry, Step
from fastspeech.layers.derived import Derived
from fastspeech.layers.linear import direct
from fastspeech.layers.relaid import Map, Product
from fastspeech.layers.residual import add_and_norm
from fastspeech.layers.rotary import inverse_frequencies, joint_rotation, joint_turns
from fastspeech.models.moonshine.config import MoonshineConfig


class GatedMLP(nn.Module):
    """fc2(a * act(b)), a and b the halves of fc1."""

    def __init__(self, config: MoonshineConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = activation(config.decoder_hidden_act)

    def function(self, product: Product) -> Map:
        """The sublayer as a function of its present parameters."""
        up, act, down = product(self.fc1), self.activation, product(self.fc2)

        def run(h: Tensor) -> Tensor:
            value, gate = up(h).chunk(2, dim=-1)
            return down(act(gate) * value)

        return run


class Layer(nn.Module):
    """The parameters of one layer, which `Decoder.run` runs."""

    def __init__(self, config: MoonshineConfig) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.decoder_num_attention_heads
        sizes = (width, heads, cast(int, config.decoder_num_key_value_heads), width // heads)
        self.self_attn = Projections(*sizes, config.attention_bias, False)
        self.encoder_attn = Projections(*sizes, config.attention_bias, False)
        self.mlp = GatedMLP(config)
        self.input_layernorm = nn.LayerNorm(width, bias=False)
        self.post_attention_layernorm = nn.LayerNorm(width, bias=False)
        self.final_layernorm = nn.LayerNorm(width, bias=False)

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


class MoonshineDecoder(Decoder):
    """Tokens and encoder frames to hidden states."""

    def __init__(self, config: MoonshineConfig) -> None:
        super().__init__()
        self.config = config
        self.heads, self.kv_heads = config.decoder_num_attention_heads, cast(int, config.decoder_num_key_value_heads)
        self.head_dim, self.dropout = config.hidden_size // self.heads, config.attention_dropout
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.decoder_num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, bias=False)
        self._inv_freq = Derived()
        self._turns = Derived()

    def cross_maps(self) -> list[nn.Linear]:
        cross = [layer.encoder_attn for layer in self._layers()]
        return [linear for attention in cross for linear in (attention.k_proj, attention.v_proj)]

    def enter(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor | None, past: int
    ) -> Entry:
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        weight = self.norm.weight
        inv_freq = self._inv_freq.get((weight,), lambda: inverse_frequencies(self.config, self.head_dim, weight.device))
        if position_ids is None and torch.compiler.is_compiling():
            position_ids = torch.arange(past, past + x.shape[1], device=x.device)[None]
        if position_ids is not None:
            factors = self._turned(inv_freq, position_ids)
        else:
            factors = self._first_turns(inv_freq, past + x.shape[1])[:, past : past + x.shape[1]]
        return Entry(x, cast(Layer, self.layers[0]).input_layernorm(x), partial(joint_rotation, factors))

    def steps(self, product: Product | None = None) -> list[Step]:
        layers = self._layers()
        following = [*(layer.input_layernorm for layer in layers[1:]), self.norm]
        return [layer.step(norm, product) for layer, norm in zip(layers, following, strict=True)]

    def _turned(self, inv_freq: Tensor, positions: Tensor) -> Tensor:
        return joint_turns(inv_freq, positions, self.heads + self.kv_heads, self.kv_heads, self.head_dim)

    def _first_turns(self, inv_freq: Tensor, count: int) -> Tensor:
        """What turns by the positions from 0 on, `count` of them or more."""

        def compute() -> Tensor:
            # Twice as many, so that a run does not compute them at each step.
            return self._turned(inv_freq, torch.arange(2 * count, device=inv_freq.device)[None])

        found = self._turns.get((inv_freq,), compute)
        if found.shape[1] < count:
            self._turns.drop()
            found = self._turns.get((inv_freq,), compute)
        return cast(Tensor, found)

    def _layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.layers))
