"""Speech2Text's encoder: gated convolutions and a Transformer, with the parameter names of transformers."""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastspeech.generation.interface import Record
from fastspeech.layers.activations import activation
from fastspeech.layers.attention import attention
from fastspeech.layers.clips import by_clip, one_by_one
from fastspeech.layers.derived import DerivingModule
from fastspeech.layers.linear import direct
from fastspeech.layers.padding import clear_padding_, readable
from fastspeech.layers.recorded_encoder import Heard, RecordedEncoder
from fastspeech.layers.residual import add_and_norm
from fastspeech.models.speech_to_text.blocks import Projections, SinusoidalPositions, dropped, feed_forward
from fastspeech.models.speech_to_text.config import Speech2TextConfig
from fastspeech.outputs import BaseModelOutput

_HALF_LIMIT = torch.finfo(torch.float16).max - 1000
"""What float16 hidden states are clamped to after each layer."""


class Subsampler(nn.Module):
    """Convolutions of stride 2, each followed by a gated linear unit (Dauphin et al. 2017)."""

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__()
        entering = config.input_feat_per_channel * config.input_channels
        self.conv_layers = nn.ModuleList()
        for kernel in config.conv_kernel_sizes:
            last = len(self.conv_layers) == config.num_conv_layers - 1
            leaving = 2 * config.d_model if last else config.conv_channels
            self.conv_layers.append(nn.Conv1d(entering, leaving, kernel, 2, kernel // 2))
            entering = leaving // 2

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B, T0, features) to (B, T, d_model), as if each row ended at its length (B,)."""
        x = features.transpose(1, 2)
        for conv in self.conv_layers:
            x = F.glu(conv(x), dim=1)
            if lengths is not None:
                lengths = output_length(lengths, cast(nn.Conv1d, conv))
                x = clear_padding_(x, lengths, dim=2)
        return x.transpose(1, 2)


def output_length(length: Any, conv: nn.Conv1d) -> Any:
    """Frames a convolution gives for `length` frames (an int or a tensor of them)."""
    return (length + 2 * int(conv.padding[0]) - conv.kernel_size[0]) // conv.stride[0] + 1


class Layer(nn.Module):
    """A pre-norm layer, from one norm to the next."""

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.d_model // config.encoder_attention_heads
        self.activation = activation(config.activation_function)
        self.self_attn = Projections(config.d_model)
        self.self_attn_layer_norm = nn.LayerNorm(config.d_model)
        self.fc1 = nn.Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = nn.LayerNorm(config.d_model)

    def forward(
        self,
        x: Tensor,
        h: Tensor,
        next_norm: nn.LayerNorm,
        mask: Tensor | None,
        head_mask: Tensor | None,
        with_weights: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """x (B, T, d_model) and its norm h to the same after the layer; with the attention weights where asked for."""
        config, training = self.config, self.training
        by_head = self.self_attn.qkv()(h).unflatten(-1, (3, -1, self.head_dim))
        q, k, v = by_head.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = config.attention_dropout if training else 0.0
        y, weights = attention(q, k, v, mask, False, dropout, with_weights, head_mask)
        out = dropped(direct(self.self_attn.out_proj), config.dropout, training)
        x, h = add_and_norm(self.final_layer_norm)(x, out(y))
        inner = feed_forward(self.fc1, self.fc2, self.activation, config.activation_dropout, training)
        delta = dropped(inner, config.dropout, training)(h)
        if x.dtype == torch.float16:
            x = (x + delta).clamp(-_HALF_LIMIT, _HALF_LIMIT)
            return x, next_norm(x), weights
        return *add_and_norm(next_norm)(x, delta), weights


class Speech2TextEncoder(DerivingModule):
    """Features to encoder frames, four features each by default.

    What frames mean near the end of a clip depends on the padding behind it, as in transformers: the convolutions see
    frames of zeros there, and what the first makes of them enters the second.
    """

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = math.sqrt(config.d_model) if config.scale_embedding else 1.0
        self.conv = Subsampler(config)
        self.embed_positions = SinusoidalPositions(config.max_source_positions, config.d_model, config.pad_token_id)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.encoder_layers))
        self.layer_norm = nn.LayerNorm(config.d_model)
        self.recorded = RecordedEncoder()

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Encode a batch of clips.

        Args:
            input_features: (B, T0, features) floating; 0 behind a clip's end.
            attention_mask: (B, T0), true (or 1) at a clip's features, which come first; None where all are.
            head_mask: (heads,) or (layers, heads), the factor of each head: 0 to leave it out.

        Returns:
            `BaseModelOutput` with last_hidden_state (B, T, d_model), T being T0 halved, rounding up, at each
            convolution, and attention_mask (B, T) int32 where a mask was given; a tuple with `return_dict=False`.
            Frames behind a clip's end are finite and mean nothing.

        Raises:
            ValueError: features of another rank or number, or a head mask of another shape.
        """
        config = self.config
        width = config.input_feat_per_channel * config.input_channels
        if input_features.dim() != 3 or input_features.shape[2] != width:
            raise ValueError(f"input_features must be (batch, frames, {width}), got {tuple(input_features.shape)}")
        with_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with_weights = config.output_attentions if output_attentions is None else output_attentions
        factors = head_factors(head_mask, config.encoder_layers, config.encoder_attention_heads, "head_mask")

        x = self.conv(input_features)
        valid = None if attention_mask is None else self.valid_frames(attention_mask, x.shape[1])
        mask = None if valid is None else valid[:, None, None]
        if mask is not None and readable(mask) and bool(mask.all()):
            mask = None
        positions = self.embed_positions(None if mask is None else valid, x.shape[1], 0, x)
        x = F.dropout(torch.add(positions, x, alpha=self.scale), config.dropout, self.training)

        record = Record(with_states, with_weights)
        if one_by_one(x, record, self.training):
            lengths = None if mask is None else cast(Tensor, valid).sum(-1)
            last = by_clip(x.split(1), lengths, x.shape[1], lambda clip: self._run(clip, None, factors, record))
        else:
            last = self._run(x, mask, factors, record)
        output = BaseModelOutput(
            last_hidden_state=last,
            hidden_states=(*record.hidden_states, last) if with_states else None,
            attentions=tuple(record.attentions) if with_weights else None,
            attention_mask=None if valid is None else valid.int(),
        )
        return_dict = config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def heard(self, audio: Tensor, mask: Tensor | None, head_mask: Tensor | None) -> Heard | None:
        """As `Recordable.heard`. A row hears all frames of the batch."""
        width = self.config.input_feat_per_channel * self.config.input_channels
        if audio.dim() != 3 or audio.shape[2] != width or head_mask is not None:
            return None
        frames = audio.shape[1]
        lengths = torch.full(audio.shape[:1], frames, device=audio.device)
        for conv in self.conv.conv_layers:
            frames = output_length(frames, cast(nn.Conv1d, conv))
        if mask is None:
            return Heard(lengths, torch.full_like(lengths, frames), frames)
        return Heard(lengths, self.valid_frames(mask, frames).sum(-1), frames)

    def padded(self, audio: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        """As `Recordable.padded`."""
        x = self.conv(audio, lengths)
        there = torch.arange(x.shape[1], device=x.device) < valid[:, None]
        x = torch.add(self.embed_positions(there, x.shape[1], 0, x), x, alpha=self.scale)
        return self._run(x, there[:, None, None], [None] * len(self.layers), Record(False, False))

    def _run(self, x: Tensor, mask: Tensor | None, factors: list[Tensor | None], record: Record) -> Tensor:
        """What leaves the layers for x (B, T, d_model); states of layers and attention weights go to the record."""
        kept = self._kept_layers()
        norms = [*(layer.self_attn_layer_norm for _, layer in kept), self.layer_norm]
        h = norms[0](x)
        for (index, layer), norm in zip(kept, norms[1:], strict=True):
            if record.with_states:
                record.hidden_states.append(x)
            x, h, weights = layer(x, h, norm, mask, factors[index], record.with_weights)
            if weights is not None:
                record.attentions.append(weights)
        return h

    def valid_frames(self, attention_mask: Tensor, frames: int) -> Tensor:
        """(B, frames) bool: the encoder frames of a clip, by the mask (B, T0) of its features.

        As in transformers, a clip without any counts as full.
        """
        lengths = attention_mask.sum(-1)
        for _ in range(self.config.num_conv_layers):
            lengths = (lengths - 1) // 2 + 1
        lengths = lengths.masked_fill(lengths == 0, frames)
        return torch.arange(frames, device=lengths.device) < lengths[:, None]

    def _kept_layers(self) -> list[tuple[int, Layer]]:
        """All layers; in training each is left out with probability `encoder_layerdrop` (Fan et al. 2020)."""
        layers = list(enumerate(cast(list[Layer], list(self.layers))))
        if not self.training or self.config.encoder_layerdrop == 0:
            return layers
        return [layer for layer in layers if torch.rand([]) >= self.config.encoder_layerdrop]


def head_factors(mask: Tensor | None, layers: int, heads: int, name: str) -> list[Tensor | None]:
    """For each layer the factors (heads,) of a head mask (heads,) or (layers, heads).

    Raises:
        ValueError: a mask of another shape.
    """
    if mask is None:
        return [None] * layers
    if mask.shape not in ((heads,), (layers, heads)):
        raise ValueError(f"{name} must be ({heads},) or ({layers}, {heads}), got {tuple(mask.shape)}")
    return list(mask.expand(layers, heads))
