"""The FastConformer encoder (Rekesh et al. 2023; NeMo's ConformerEncoder), with the parameter names of transformers."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastspeech.generation.interface import Record
from fastspeech.kernels import conformer_conv, relpos_attention
from fastspeech.layers.activations import activation
from fastspeech.layers.derived import Derived, DerivingModule
from fastspeech.layers.linear import PackedLinear, direct, pointwise
from fastspeech.layers.packing import Padded, Rows, counts_of, packed, side_by_side
from fastspeech.layers.padding import clear_padding_, frame_mask
from fastspeech.layers.recorded_encoder import Heard, RecordedEncoder
from fastspeech.layers.residual import add_and_norm
from fastspeech.models.cohere_asr.config import ParakeetEncoderConfig
from fastspeech.outputs import BaseModelOutput

_POSITION_BLOCK = 64
"""Position tables are made for a multiple of this many frames, so that a slightly longer utterance needs no new one."""


def relative_positions(frames: int, width: int, like: Tensor) -> Tensor:
    """Sinusoids of the relative positions frames - 1 down to 1 - frames, (2 * frames - 1, width), sine and cosine
    interleaved (Vaswani et al. 2017, section 3.5), computed in float32 and cast to the dtype of `like`."""
    positions = torch.arange(frames - 1, -frames, -1, device=like.device, dtype=torch.float32)
    rates = 1.0 / 10000.0 ** (torch.arange(0, width, 2, device=like.device, dtype=torch.float32) / width)
    angles = positions[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).to(like.dtype)


class Subsampling(nn.Module):
    """Strided 2-D convolutions over time and mel bins, and a projection to the encoder's width.

    Raises:
        ValueError: mel bins that the subsampling does not divide.
    """

    def __init__(self, config: ParakeetEncoderConfig) -> None:
        super().__init__()
        kernel, stride, channels = (
            config.subsampling_conv_kernel_size,
            config.subsampling_conv_stride,
            config.subsampling_conv_channels,
        )
        stages = int(math.log2(config.subsampling_factor))
        padding = (kernel - 1) // 2
        if config.num_mel_bins % stride**stages:
            raise ValueError(f"num_mel_bins ({config.num_mel_bins}) must be a multiple of {stride**stages}")
        self.layers = nn.ModuleList([nn.Conv2d(1, channels, kernel, stride, padding), nn.ReLU(inplace=True)])
        for _ in range(stages - 1):
            self.layers.append(nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels))
            self.layers.append(nn.Conv2d(channels, channels, 1))
            self.layers.append(nn.ReLU(inplace=True))
        self.linear = nn.Linear(channels * (config.num_mel_bins // stride**stages), config.hidden_size)

    def frames(self, length: Any) -> Any:
        """Encoder frames of so many of features (an int or a tensor of them)."""
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d) and layer.kernel_size[0] > 1:
                length = output_length(length, layer)
        return length

    def forward(self, features: Tensor, lengths: Tensor | None) -> Tensor:
        """(B, T0, mel) features with lengths (B,) to (B, T, hidden).

        Frames behind a length are set to 0 after every convolution, so that no bias reaches a valid frame from there.
        """
        # Strides of a channels-last tensor: the convolutions keep that layout, in which they run faster.
        x = features[..., None].permute(0, 3, 1, 2)
        for layer in self.layers:
            x = layer(x)
            if lengths is not None and isinstance(layer, nn.Conv2d):
                lengths = output_length(lengths, layer)
                clear_padding_(x, lengths, dim=2)
        return direct(self.linear)(x.transpose(1, 2).flatten(2))


def output_length(length: Any, conv: nn.Conv2d) -> Any:
    """Frames a convolution gives for `length` frames (an int or a tensor of them)."""
    return (length + 2 * conv.padding[0] - conv.kernel_size[0]) // conv.stride[0] + 1


class FeedForward(nn.Module):
    def __init__(self, config: ParakeetEncoderConfig) -> None:
        super().__init__()
        self.linear1 = nn.Linear(config.hidden_size, config.intermediate_size, config.attention_bias)
        self.linear2 = nn.Linear(config.intermediate_size, config.hidden_size, config.attention_bias)
        self.activation = activation(config.hidden_act)
        self.dropout = config.activation_dropout

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(direct(self.linear1)(x))
        return direct(self.linear2)(F.dropout(h, self.dropout, self.training))


class Attention(DerivingModule):
    """Self-attention with relative positions."""

    def __init__(self, config: ParakeetEncoderConfig) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.heads
        self.scale = self.head_dim**-0.5
        self.dropout = config.attention_dropout
        inner = self.heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner, config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, inner, config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, inner, config.attention_bias)
        self.o_proj = nn.Linear(inner, config.hidden_size, config.attention_bias)
        self.relative_k_proj = nn.Linear(config.hidden_size, inner, bias=False)
        self.bias_u = nn.Parameter(torch.zeros(self.heads, self.head_dim))
        self.bias_v = nn.Parameter(torch.zeros(self.heads, self.head_dim))
        self._packed = PackedLinear()
        self._relative = Derived()

    def forward(
        self, x: Tensor, positions: Tensor, rows: Rows, with_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, hidden), or as its rows lie; positions (2S - 1, hidden), encoding the relative positions of S >= T
        frames.

        Returns (B, T, hidden) and, `with_weights`, the attention weights (B, heads, T, T).
        """
        qkv = self._packed.function((self.q_proj, self.k_proj, self.v_proj))(x)
        weights = None
        if with_weights or (self.training and self.dropout > 0):
            q, k, v = self._by_head(qkv)
            weights = self._weights(q, k, self._projected(positions, x.shape[1]), cast(Padded, rows).lengths)
            dropped = F.dropout(weights, self.dropout, self.training)
            y = (dropped @ v.transpose(1, 2)).transpose(1, 2)
        else:
            y = rows.each(partial(self._attended, positions), qkv)
        return direct(self.o_proj)(y.flatten(2)), weights if with_weights else None

    def _by_head(self, qkv: Tensor) -> tuple[Tensor, ...]:
        return qkv.unflatten(-1, (3, self.heads, self.head_dim)).unbind(2)

    def _attended(self, positions: Tensor, qkv: Tensor, rows: Padded) -> Tensor:
        """(B, T, heads, head_dim) of queries, keys and values (B, T, 3 * inner)."""
        q, k, v = self._by_head(qkv)
        r = self._projected(positions, rows.frames)
        # Under autocast the projections are narrower than the parameters.
        u, w = self.bias_u.to(q.dtype), self.bias_v.to(q.dtype)
        return relpos_attention(q, k, v, r.to(q.dtype), u, w, rows.lengths, self.scale)

    def _projected(self, positions: Tensor, frames: int) -> Tensor:
        """(2 * frames - 1, heads, head_dim); without gradients the whole table is projected once and kept."""
        weight = self.relative_k_proj.weight

        def project() -> Tensor:
            return F.linear(positions, weight).unflatten(-1, (self.heads, self.head_dim))

        table = project() if torch.is_grad_enabled() else self._relative.get((weight, positions), project)
        middle = table.shape[0] // 2
        return table[middle - frames + 1 : middle + frames]

    def _weights(self, q: Tensor, k: Tensor, r: Tensor, lengths: Tensor | None) -> Tensor:
        """softmax of the scores of `relpos_attention`, (B, heads, T, T), written out."""
        frames = q.shape[1]
        content = torch.einsum("bihd,bjhd->bhij", q + self.bias_u, k)
        step = torch.arange(frames, device=q.device)
        row = frames - 1 - step[:, None] + step
        by_row = torch.einsum("bihd,mhd->bhim", q + self.bias_v, r)
        scores = content + by_row.gather(3, row.expand(*content.shape))
        scores = scores * self.scale
        if lengths is not None:
            keys = step < lengths[:, None]
            scores = scores.masked_fill(~keys[:, None, None], torch.finfo(scores.dtype).min)
        return scores.softmax(-1, dtype=torch.float32).to(q.dtype)


class Convolution(DerivingModule):
    """Pointwise convolution, GLU, depthwise convolution, BatchNorm, activation, pointwise convolution.

    Raises:
        ValueError: a depthwise filter without a middle.
    """

    def __init__(self, config: ParakeetEncoderConfig) -> None:
        super().__init__()
        channels, bias = config.hidden_size, config.convolution_bias
        taps = config.conv_kernel_size
        if taps % 2 == 0:
            raise ValueError(f"conv_kernel_size ({taps}) must be odd")
        self.pointwise_conv1 = nn.Conv1d(channels, 2 * channels, 1, bias=bias)
        self.depthwise_conv = nn.Conv1d(channels, channels, taps, padding=taps // 2, groups=channels, bias=bias)
        self.norm = nn.BatchNorm1d(channels)
        self.pointwise_conv2 = nn.Conv1d(channels, channels, 1, bias=bias)
        self.activation = activation(config.hidden_act)
        self.fused = self.activation is F.silu
        self._folded = Derived()

    def forward(self, x: Tensor, rows: Rows) -> Tensor:
        """x (B, T, hidden), or as its rows lie, to the same."""
        x = pointwise(self.pointwise_conv1)(x)
        middle = self._fused if self.fused and not self.training else self._plain
        return pointwise(self.pointwise_conv2)(rows.each(middle, x))

    def _fused(self, x: Tensor, rows: Padded) -> Tensor:
        weight, bias = self._filter()
        return conformer_conv(x, weight.to(x.dtype), bias.to(x.dtype), rows.lengths)

    def _plain(self, x: Tensor, rows: Padded) -> Tensor:
        gated = F.glu(x, dim=-1)
        if rows.lengths is not None:
            gated = clear_padding_(gated, rows.lengths, dim=1)
        return self.activation(self.norm(self.depthwise_conv(gated.transpose(1, 2)))).transpose(1, 2)

    def _filter(self) -> tuple[Tensor, Tensor]:
        """The depthwise filter (hidden, taps) and bias (hidden,) with the BatchNorm's running statistics folded in."""
        conv, norm = self.depthwise_conv, self.norm
        mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)

        def fold() -> tuple[Tensor, Tensor]:
            scale = norm.weight * (variance + norm.eps).rsqrt()
            bias = -mean if conv.bias is None else conv.bias - mean
            return conv.weight[:, 0] * scale[:, None], bias * scale + norm.bias

        if torch.is_grad_enabled():
            return fold()
        sources = (conv.weight, conv.bias, norm.weight, norm.bias, mean, variance)
        return self._folded.get([source for source in sources if source is not None], fold)


class Block(nn.Module):
    """A macaron Conformer layer (Gulati et al. 2020, section 2): half a feed-forward step, attention, convolution, the
    other half, each from a LayerNorm into the residual stream, and a LayerNorm of the stream."""

    def __init__(self, config: ParakeetEncoderConfig) -> None:
        super().__init__()
        self.feed_forward1 = FeedForward(config)
        self.self_attn = Attention(config)
        self.conv = Convolution(config)
        self.feed_forward2 = FeedForward(config)
        self.norm_feed_forward1 = nn.LayerNorm(config.hidden_size)
        self.norm_self_att = nn.LayerNorm(config.hidden_size)
        self.norm_conv = nn.LayerNorm(config.hidden_size)
        self.norm_feed_forward2 = nn.LayerNorm(config.hidden_size)
        self.norm_out = nn.LayerNorm(config.hidden_size)

    def forward(
        self, x: Tensor, positions: Tensor, rows: Rows, with_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, T, hidden), or as its rows lie, to the same, and the attention weights where asked for."""
        x, h = add_and_norm(self.norm_self_att, 0.5)(x, self.feed_forward1(self.norm_feed_forward1(x)))
        attended, weights = self.self_attn(h, positions, rows, with_weights)
        x, h = add_and_norm(self.norm_conv)(x, attended)
        x, h = add_and_norm(self.norm_feed_forward2)(x, self.conv(h, rows))
        _, x = add_and_norm(self.norm_out, 0.5)(x, self.feed_forward2(h))
        return x, weights


class ParakeetEncoder(DerivingModule):
    """Log-mel features to encoder frames."""

    def __init__(self, config: ParakeetEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.input_scale = math.sqrt(config.hidden_size) if config.scale_input else 1.0
        self.subsampling = Subsampling(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self._positions: Tensor | None = None
        self.recorded = RecordedEncoder()

    def forward(
        self,
        input_features: Tensor,
        attention_mask: Tensor | None = None,
        output_attention_mask: bool = True,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Encode a batch of utterances.

        Args:
            input_features: (B, T0, mel) floating; frames behind an utterance's end are 0, as the extractor leaves them.
            attention_mask: (B, T0), true (or 1) at an utterance's frames, which come first; None where all are.
            output_attention_mask: whether to give the mask of the encoder's frames back.

        Returns:
            `BaseModelOutput` with last_hidden_state (B, T, hidden) and attention_mask (B, T) int32, T being T0 halved,
            rounding up, log2(subsampling_factor) times; a tuple with `return_dict=False`. Frames behind an utterance's
            end are finite and mean nothing.

        Raises:
            ValueError: features of another rank or number of mel bins.
        """
        config = self.config
        if input_features.dim() != 3 or input_features.shape[2] != config.num_mel_bins:
            raise ValueError(
                f"input_features must be (batch, frames, {config.num_mel_bins}), got {tuple(input_features.shape)}"
            )
        with_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with_weights = config.output_attentions if output_attentions is None else output_attentions
        lengths = None if attention_mask is None else attention_mask.sum(-1)
        frames = self.subsampling.frames(input_features.shape[1])
        valid = None if lengths is None else self.subsampling.frames(lengths)
        record, device = Record(with_states, with_weights), input_features.device
        counts = counts_of(valid, input_features, frames, config.hidden_size, record, self.training)
        if counts is None:
            lengths = None if lengths is None else lengths.to(device)
            last = self._run(self._entering(input_features, lengths), side_by_side(valid, frames, device), record)
        else:
            stem = partial(self._cut, input_features, lengths)
            last = packed(stem, partial(self._run, record=record), counts, frames, device)
        mask = None
        if valid is not None and output_attention_mask:
            mask = frame_mask(valid.to(device), frames).int()
        output = BaseModelOutput(
            last_hidden_state=last,
            hidden_states=(*record.hidden_states, last) if with_states else None,
            attentions=tuple(record.attentions) if with_weights else None,
            attention_mask=mask,
        )
        return_dict = config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def heard(self, audio: Tensor, mask: Tensor | None, option: None = None) -> Heard | None:
        """As `Recordable.heard`."""
        if audio.dim() != 3 or audio.shape[2] != self.config.num_mel_bins:
            return None
        lengths = torch.full(audio.shape[:1], audio.shape[1]) if mask is None else mask.sum(-1)
        frames = self.subsampling.frames
        return Heard(lengths, frames(lengths), frames(audio.shape[1]))

    def padded(self, audio: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        """As `Recordable.padded`."""
        x = self._entering(audio, lengths)
        return self._run(x, Padded(valid, x.shape[1]), Record())

    def _entering(self, features: Tensor, lengths: Tensor | None) -> Tensor:
        """What enters the layers, (B, T, hidden), for features (B, T0, mel) with lengths (B,)."""
        x = self.subsampling(features, lengths)
        return F.dropout(x * self.input_scale if self.config.scale_input else x, self.config.dropout, self.training)

    def _cut(self, features: Tensor, lengths: Tensor | None, rows: slice) -> Tensor:
        """As `_entering`, for some of the rows, without the padding that they share; with lengths on the host."""
        features = features[rows]
        if lengths is not None:
            lengths = lengths[rows]
            features = features[:, : max(1, int(lengths.max()))]
            lengths = None if int(lengths.min()) == features.shape[1] else lengths.to(features.device)
        return self._entering(features, lengths)

    def _run(self, x: Tensor, rows: Rows, record: Record) -> Tensor:
        """What leaves the layers; states of layers and attention weights go to the record."""
        positions = F.dropout(self._table(rows.frames), self.config.dropout_positions, self.training)
        for layer in self._kept_layers():
            if record.with_states:
                record.hidden_states.append(x)
            x, weights = layer(x, positions, rows, record.with_weights)
            if weights is not None:
                record.attentions.append(weights)
        return x

    def _kept_layers(self) -> Iterable[nn.Module]:
        """All layers; in training each is left out with probability `layerdrop` (Fan et al. 2020)."""
        if not self.training or self.config.layerdrop == 0:
            return self.layers
        return [layer for layer in self.layers if torch.rand([]) >= self.config.layerdrop]

    def _table(self, frames: int) -> Tensor:
        """(2S - 1, hidden), the relative positions of S >= `frames` frames.

        Without gradients one table serves all lengths up to the longest yet, as its middle, but where a graph is
        traced.
        """
        weight, kept = self.subsampling.linear.weight, self._positions
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return relative_positions(frames, self.config.hidden_size, weight)
        if kept is None or len(kept) < 2 * frames - 1 or kept.dtype != weight.dtype or kept.device != weight.device:
            frames = -(-frames // _POSITION_BLOCK) * _POSITION_BLOCK
            with torch.inference_mode(False):
                self._positions = kept = relative_positions(frames, self.config.hidden_size, weight)
        return kept
