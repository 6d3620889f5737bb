"""Speech2Text's encoder: gated convolutions and a Transformer, with the parameter names of transformers."""

import math
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastspeech.generation.interface import Record
from fastspeech.layers.activations import activation
from fastspeech.layers.attention import attention
from fastspeech.layers.derived import DerivingModule
from fastspeech.layers.linear import direct
from fastspeech.layers.packing import Padded, Rows, counts_of, packed, side_by_side
from fastspeech.layers.padding import clear_padding_, frame_mask
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

    def frames(self, heard: int) -> int:
        """Frames that leave the convolutions where so many enter."""
        for conv in self.conv_layers:
            heard = output_length(heard, cast(nn.Conv1d, conv))
        return heard

    def heard(self, frames: int) -> int:
        """Features that the first so many of the frames which leave hear."""
        for conv in reversed(cast(list[nn.Conv1d], list(self.conv_layers))):
            frames = 2 * (frames - 1) + conv.kernel_size[0] - int(conv.padding[0])
        return frames

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
        rows: Rows,
        head_mask: Tensor | None,
        with_weights: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """x (B, T, d_model), or as its rows lie, and its norm h to the same after the layer; with the attention weights
        where asked for."""
        config, training = self.config, self.training
        qkv = self.self_attn.qkv()(h)
        weights = None
        if with_weights:
            y, weights = self._attended(head_mask, True, qkv, cast(Padded, rows))
        else:
            y = rows.each(lambda qkv, rows: self._attended(head_mask, False, qkv, rows)[0], qkv)
        out = dropped(direct(self.self_attn.out_proj), config.dropout, training)
        x, h = add_and_norm(self.final_layer_norm)(x, out(y))
        inner = feed_forward(self.fc1, self.fc2, self.activation, config.activation_dropout, training)
        delta = dropped(inner, config.dropout, training)(h)
        if x.dtype == torch.float16:
            x = (x + delta).clamp(-_HALF_LIMIT, _HALF_LIMIT)
            return x, next_norm(x), weights
        return *add_and_norm(next_norm)(x, delta), weights

    def _attended(
        self, head_mask: Tensor | None, with_weights: bool, qkv: Tensor, rows: Padded
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, d_model) of queries, keys and values (B, T, 3 * d_model), and the weights where asked for."""
        q, k, v = qkv.unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.config.attention_dropout if self.training else 0.0
        mask = rows.mask()
        mask = None if mask is None else mask[:, None, None]
        return attention(q, k, v, mask, False, dropout, with_weights, head_mask)


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

        frames = self.conv.frames(input_features.shape[1])
        valid = None if attention_mask is None else self.lengths(attention_mask, frames)
        record, device = Record(with_states, with_weights), input_features.device
        counts = counts_of(valid, input_features, frames, config.d_model, record, self.training)
        if counts is None:
            rows = side_by_side(valid, frames, device)
            last = self._run(self._entering(input_features, rows.mask()), rows, factors, record)
        else:
            stem = partial(self._cut, input_features, counts)
            last = packed(stem, partial(self._run, factors=factors, record=record), counts, frames, device)
        output = BaseModelOutput(
            last_hidden_state=last,
            hidden_states=(*record.hidden_states, last) if with_states else None,
            attentions=tuple(record.attentions) if with_weights else None,
            attention_mask=None if valid is None else frame_mask(valid.to(device), frames).int(),
        )
        return_dict = config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def heard(self, audio: Tensor, mask: Tensor | None, head_mask: Tensor | None) -> Heard | None:
        """As `Recordable.heard`. A row hears all frames of the batch."""
        width = self.config.input_feat_per_channel * self.config.input_channels
        if audio.dim() != 3 or audio.shape[2] != width or head_mask is not None:
            return None
        lengths = torch.full(audio.shape[:1], audio.shape[1], device=None if mask is None else mask.device)
        frames = self.conv.frames(audio.shape[1])
        return Heard(lengths, torch.full_like(lengths, frames) if mask is None else self.lengths(mask, frames), frames)

    def padded(self, audio: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        """As `Recordable.padded`."""
        rows = Padded(valid, self.conv.frames(audio.shape[1]))
        x = self._entering(audio, rows.mask(), lengths)
        return self._run(x, rows, [None] * len(self.layers), Record())

    def _entering(self, features: Tensor, valid: Tensor | None, lengths: Tensor | None = None) -> Tensor:
        """What enters the layers, (B, T, d_model), (B, T) of it `valid`, for features (B, T0, features), as if each row
        of them ended at its length (B,)."""
        x = self.conv(features, lengths)
        positions = self.embed_positions(valid, x.shape[1], 0, x)
        return F.dropout(torch.add(positions, x, alpha=self.scale), self.config.dropout, self.training)

    def _cut(self, features: Tensor, counts: list[int], rows: slice) -> Tensor:
        """As `_entering`, for some of the rows, without what no valid frame of theirs hears."""
        return self._entering(features[rows, : self.conv.heard(max(counts[rows]))], None)

    def _run(self, x: Tensor, rows: Rows, factors: list[Tensor | None], record: Record) -> Tensor:
        """What leaves the layers; states of layers and attention weights go to the record."""
        kept = self._kept_layers()
        norms = [*(layer.self_attn_layer_norm for _, layer in kept), self.layer_norm]
        h = norms[0](x)
        for (index, layer), norm in zip(kept, norms[1:], strict=True):
            if record.with_states:
                record.hidden_states.append(x)
            x, h, weights = layer(x, h, norm, rows, factors[index], record.with_weights)
            if weights is not None:
                record.attentions.append(weights)
        return h

    def valid_frames(self, attention_mask: Tensor, frames: int) -> Tensor:
        """(B, frames) bool: the encoder frames of a clip, by the mask (B, T0) of its features."""
        return frame_mask(self.lengths(attention_mask, frames), frames)

    def lengths(self, attention_mask: Tensor, frames: int) -> Tensor:
        """(B,) int64, how many these are. As in transformers, a clip without any counts as full."""
        lengths = attention_mask.sum(-1)
        for _ in range(self.config.num_conv_layers):
            lengths = (lengths - 1) // 2 + 1
        return lengths.masked_fill(lengths == 0, frames)

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
