"""Speech2Text's decoder, with the parameter names of transformers."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastspeech.layers.activations import activation
from fastspeech.layers.decoder import Decoder, Entry, Step
from fastspeech.layers.linear import direct
from fastspeech.layers.relaid import Product
from fastspeech.layers.residual import add_and_norm
from fastspeech.models.speech_to_text.blocks import Projections, SinusoidalPositions, dropped, feed_forward
from fastspeech.models.speech_to_text.config import Speech2TextConfig
from fastspeech.models.speech_to_text.encoder import head_factors


class Layer(nn.Module):
    """The parameters of one layer, which `Decoder.run` runs."""

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__()
        width = config.d_model
        self.config = config
        self.activation = activation(config.activation_function)
        self.self_attn = Projections(width)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.encoder_attn = Projections(width)
        self.encoder_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.decoder_ffn_dim)
        self.fc2 = nn.Linear(config.decoder_ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def step(
        self,
        next_norm: nn.LayerNorm,
        head_mask: Tensor | None,
        cross_head_mask: Tensor | None,
        left_out: bool,
        product: Product | None,
    ) -> Step:
        """The layer as functions of its present parameters; a layer that is left out adds nothing."""
        config, training, single = self.config, self.training, product or direct
        inner = feed_forward(self.fc1, self.fc2, self.activation, config.activation_dropout, training, single)
        sublayers = (single(self.self_attn.out_proj), single(self.encoder_attn.out_proj), inner)
        out, cross_out, mlp = (
            torch.zeros_like if left_out else dropped(sublayer, config.dropout, training) for sublayer in sublayers
        )
        return Step(
            qkv=self.self_attn.qkv(product),
            out=out,
            norm_cross=add_and_norm(self.encoder_attn_layer_norm),
            cross_q=single(self.encoder_attn.q_proj),
            cross_out=cross_out,
            norm_mlp=add_and_norm(self.final_layer_norm),
            mlp=mlp,
            norm_next=add_and_norm(next_norm),
            head_mask=head_mask,
            cross_head_mask=cross_head_mask,
        )


class Speech2TextDecoder(Decoder):
    """Tokens and encoder frames to hidden states.

    Padding tokens have no position. Tokens behind them go on counting from the tokens before where all are read in one
    call, and from the length of the cache where there is one, as in transformers.
    """

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = self.kv_heads = config.decoder_attention_heads
        self.head_dim, self.dropout = config.d_model // self.heads, config.attention_dropout
        self.scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.embed_tokens = nn.Embedding(config.vocab_size, config.d_model, config.pad_token_id)
        self.embed_positions = SinusoidalPositions(config.max_target_positions, config.d_model, config.pad_token_id)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.decoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)

    def cross_maps(self) -> list[nn.Linear]:
        cross = [layer.encoder_attn for layer in self._layers()]
        return [linear for attention in cross for linear in (attention.k_proj, attention.v_proj)]

    def enter(
        self, input_ids: Tensor | None, inputs_embeds: Tensor | None, position_ids: Tensor | None, past: int
    ) -> Entry:
        """As `Decoder.enter`; positions follow from the tokens behind the first, embeddings are taken as they are
        (already scaled)."""
        if input_ids is None:
            x = cast(Tensor, inputs_embeds)
            x = x + self.embed_positions(None, x.shape[1], past, x)
        else:
            x = self.embed_tokens(input_ids)
            valid = input_ids != self.config.pad_token_id
            behind = None if position_ids is None else position_ids[:, :1]
            x = torch.add(self.embed_positions(valid, x.shape[1], past, x, behind), x, alpha=self.scale)
        x = F.dropout(x, self.config.dropout, self.training)
        return Entry(x, cast(Layer, self.layers[0]).self_attn_layer_norm(x))

    def steps(
        self,
        product: Product | None = None,
        head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
    ) -> list[Step]:
        """As `Decoder.steps`, with factors of the heads (heads,) or (layers, heads).

        In training each layer is left out with probability `decoder_layerdrop` (Fan et al. 2020).
        """
        layers, probability = self._layers(), self.config.decoder_layerdrop if self.training else 0.0
        own = head_factors(head_mask, len(layers), self.heads, "decoder_head_mask")
        cross = head_factors(cross_attn_head_mask, len(layers), self.heads, "cross_attn_head_mask")
        return [
            layer.step(norm, mask, cross_mask, probability > 0 and bool(torch.rand([]) < probability), product)
            for layer, norm, mask, cross_mask in zip(layers, self._norms()[1:], own, cross, strict=True)
        ]

    def _norms(self) -> list[nn.LayerNorm]:
        return [*(layer.self_attn_layer_norm for layer in self._layers()), self.layer_norm]

    def _layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.layers))
