"""Moonshine's encoder: convolutions over raw samples and a Transformer, with the parameter names of transformers."""

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastspeech.generation.interface import Record
from fastspeech.kernels import rope_attention
from fastspeech.kernels.onednn import through_onednn
from fastspeech.layers.activations import activation
from fastspeech.layers.attention import Projections, attention
from fastspeech.layers.derived import Derived, DerivingModule
from fastspeech.layers.linear import direct
from fastspeech.layers.packing import Padded, Rows, counts_of, packed, side_by_side
from fastspeech.layers.padding import frame_mask
from fastspeech.layers.recorded_encoder import Heard, RecordedEncoder
from fastspeech.layers.relaid import Product, Relaid, blocked
from fastspeech.layers.residual import add_and_norm
from fastspeech.layers.rotary import inverse_frequencies, rotation
from fastspeech.models.moonshine.config import MoonshineConfig
from fastspeech.outputs import BaseModelOutput

MINIMUM_SAMPLES = 895
"""What the first frame hears; each further frame hears 384 samples more."""

HOP = 384


def frames_of(samples: Any) -> Any:
    """Encoder frames of so many samples (an int or a tensor of them)."""
    return (samples - MINIMUM_SAMPLES) // HOP + 1


class MLP(nn.Module):
    def __init__(self, config: MoonshineConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.activation = activation(config.encoder_hidden_act)

    def forward(self, x: Tensor, product: Product) -> Tensor:
        return product(self.fc2)(self.activation(product(self.fc1)(x)))


class Layer(nn.Module):
    """A pre-norm layer, from one norm to the next."""

    def __init__(self, config: MoonshineConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.kv_heads = config.encoder_num_attention_heads, cast(int, config.encoder_num_key_value_heads)
        self.head_dim = width // self.heads
        self.dropout = config.attention_dropout
        self.self_attn = Projections(width, self.heads, self.kv_heads, self.head_dim, config.attention_bias, False)
        self.mlp = MLP(config)
        self.input_layernorm = nn.LayerNorm(width, bias=False)
        self.post_attention_layernorm = nn.LayerNorm(width, bias=False)

    def forward(
        self,
        x: Tensor,
        h: Tensor,
        next_norm: nn.LayerNorm,
        inv_freq: Tensor,
        rows: Rows,
        with_weights: bool,
        product: Product | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """x (B, T, hidden), or as its rows lie, and its norm h to the same after the layer; with the attention weights
        where asked for. Linear maps are made by `product` where it is given."""
        qkv = self.self_attn.qkv(product)(h)
        weights = None
        if with_weights or (self.training and self.dropout > 0):
            y, weights = self._weighed(inv_freq, qkv, cast(Padded, rows), with_weights)
        else:
            y = rows.each(partial(self._attended, inv_freq), qkv)
        single = product or direct
        x, h = add_and_norm(self.post_attention_layernorm)(x, single(self.self_attn.o_proj)(y.flatten(2)))
        x, h = add_and_norm(next_norm)(x, self.mlp(h, single))
        return x, h, weights

    def _by_head(self, qkv: Tensor) -> tuple[Tensor, ...]:
        by_head = qkv.unflatten(-1, (-1, self.head_dim))
        return by_head.split([self.heads, self.kv_heads, self.kv_heads], dim=2)

    def _attended(self, inv_freq: Tensor, qkv: Tensor, rows: Padded) -> Tensor:
        """(B, T, heads, head_dim) of queries, keys and values (B, T, ...)."""
        q, k, v = self._by_head(qkv)
        return rope_attention(q, k, v, inv_freq, lengths=rows.lengths)

    def _weighed(
        self, inv_freq: Tensor, qkv: Tensor, rows: Padded, with_weights: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The same, (B, T, inner), with dropout in training; and the attention weights where asked for."""
        q, k, v = self._by_head(qkv)
        turn = rotation(inv_freq, torch.arange(rows.frames, device=q.device)[None])
        mask = rows.mask()
        q, k, v = (side.transpose(1, 2) for side in (turn(q), turn(k), v))
        dropout = self.dropout if self.training else 0.0
        return attention(q, k, v, None if mask is None else mask[:, None, None], False, dropout, with_weights)


class MoonshineEncoder(DerivingModule):
    """Samples to encoder frames, 125/3 of them a second."""

    def __init__(self, config: MoonshineConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.conv1 = nn.Conv1d(1, width, 127, 64, bias=False)
        self.conv2 = nn.Conv1d(width, 2 * width, 7, 3)
        self.conv3 = nn.Conv1d(2 * width, width, 3, 2)
        self.groupnorm = nn.GroupNorm(1, width, eps=1e-5)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.encoder_num_hidden_layers))
        self.layer_norm = nn.LayerNorm(width, bias=False)
        self._inv_freq = Derived()
        self._folded = Derived()
        self._laid_out = Derived()
        self._relaid = Relaid()
        self.recorded = RecordedEncoder()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        exact_batching: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[Any, ...]:
        """Encode a batch of clips.

        Args:
            input_values: (B, samples) floating, 895 samples or more; 0 behind a clip's end.
            attention_mask: (B, samples), true (or 1) at a clip's samples, which come first; None where all are.
            exact_batching: by default what the configuration says; see `MoonshineConfig`.

        Returns:
            `BaseModelOutput` with last_hidden_state (B, T, hidden), T = (samples - 895) // 384 + 1, and attention_mask
            (B, T) int32 where a mask was given; a tuple with `return_dict=False`. Frames behind a clip's end are
            finite and mean nothing. Frame t hears the samples from 384 t to 384 t + 894. By default it counts as
            valid where the first of them is, as in transformers; with exact_batching where all are.

        Raises:
            ValueError: samples of another rank, or fewer than 895.
        """
        config = self.config
        if input_values.dim() != 2 or input_values.shape[1] < MINIMUM_SAMPLES:
            raise ValueError(
                f"input_values must be (batch, {MINIMUM_SAMPLES} samples or more), got {tuple(input_values.shape)}"
            )
        exact = config.exact_batching if exact_batching is None else exact_batching
        with_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        with_weights = config.output_attentions if output_attentions is None else output_attentions
        frames = frames_of(input_values.shape[1])
        samples = valid = None
        if attention_mask is not None and exact:
            samples = attention_mask.sum(-1)
            valid = frames_of(samples).clamp(min=0)
        elif attention_mask is not None:
            valid = attention_mask[:, ::HOP][:, :frames].sum(-1)

        record, device = Record(with_states, with_weights), input_values.device
        counts = counts_of(valid, input_values, frames, config.hidden_size, record, self.training)
        if counts is None:
            samples = None if samples is None else samples.to(device)
            last = self._run(self.stem(input_values, samples), side_by_side(valid, frames, device), record)
        else:
            stem = partial(self._cut, input_values, samples, counts)
            last = packed(stem, partial(self._run, record=record), counts, frames, device)
        mask = None if valid is None else frame_mask(valid.to(device), frames).int()
        output = BaseModelOutput(
            last_hidden_state=last,
            hidden_states=(*record.hidden_states, last) if with_states else None,
            attentions=tuple(record.attentions) if with_weights else None,
            attention_mask=mask,
        )
        return_dict = config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def heard(self, audio: Tensor, mask: Tensor | None, exact: bool | None) -> Heard | None:
        """As `Recordable.heard`. Without exact_batching a row hears all samples of the batch."""
        if audio.dim() != 2 or audio.shape[1] < MINIMUM_SAMPLES:
            return None
        frames = frames_of(audio.shape[1])
        samples = torch.full(audio.shape[:1], audio.shape[1], device=None if mask is None else mask.device)
        if mask is None:
            return Heard(samples, torch.full_like(samples, frames), frames)
        if self.config.exact_batching if exact is None else exact:
            samples = mask.sum(-1)
            return Heard(samples, frames_of(samples).clamp(min=0), frames)
        return Heard(samples, mask[:, ::HOP][:, :frames].sum(-1), frames)

    def padded(self, audio: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        """As `Recordable.padded`."""
        x = self.stem(audio, lengths)
        return self._run(x, Padded(valid, x.shape[1]), Record())

    def _cut(self, waveform: Tensor, samples: Tensor | None, counts: list[int], rows: slice) -> Tensor:
        """As `stem`, for some of the rows, without the frames and samples that are padding in all; with samples on the
        host."""
        waveform, frames = waveform[rows], max(1, *counts[rows])
        if samples is not None:
            samples = samples[rows]
            waveform = waveform[:, : max(MINIMUM_SAMPLES, int(samples.max()))]
            samples = None if int(samples.min()) == waveform.shape[1] else samples.to(waveform.device)
        return self.stem(waveform, samples, frames)

    def _run(self, x: Tensor, rows: Rows, record: Record) -> Tensor:
        """What leaves the layers; states of layers and attention weights go to the record."""
        layers = cast(list[Layer], list(self.layers))
        following = [*(layer.input_layernorm for layer in layers[1:]), self.layer_norm]
        h = layers[0].input_layernorm(x)
        inv_freq = self.inverse_frequencies()
        # Laid out once, weights are multiplied by a tenth faster; few frames by half.
        apart = torch.is_grad_enabled() or not through_onednn(self.layer_norm.weight)
        product = None if apart else self._relaid.product(x.shape[1])
        for layer, norm in zip(layers, following, strict=True):
            if record.with_states:
                record.hidden_states.append(x)
            x, h, weights = layer(x, h, norm, inv_freq, rows, record.with_weights, product)
            if weights is not None:
                record.attentions.append(weights)
        return h

    def inverse_frequencies(self) -> Tensor:
        """(pairs,) float32, the angles by which a step of one position turns."""
        weight, head_dim = self.layer_norm.weight, self.config.hidden_size // self.config.encoder_num_attention_heads
        return self._inv_freq.get((weight,), lambda: inverse_frequencies(self.config, head_dim, weight.device))

    def stem(self, waveform: Tensor, samples: Tensor | None, frames: int | None = None) -> Tensor:
        """(B, T, hidden) of waveform (B, N), or so many frames of it; the normalisation is over all columns, or over
        those of (B,) `samples`.

        No convolution pads, so the normalisation folds into the second one exactly: with r = 1 / std, w' = w * gain,
        conv(r * (y - mean) * gain + shift) = r * (conv'(y) - mean * sum w') + sum w * shift.
        """
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            y = self.conv1(waveform[:, None]).tanh()
            mean, scale = self._statistics(y.transpose(1, 2), samples)
            y = (y - mean) * scale * self.groupnorm.weight[:, None] + self.groupnorm.bias[:, None]
            return F.gelu(self.conv3(F.gelu(self.conv2(y)))).transpose(1, 2)[:, :frames]
        first, second, gains, shifts, third = self._matrices()
        maps = (first, None), (second, None), (third, cast(Tensor, self.conv3.bias))
        conv1, conv2, conv3 = (partial(F.linear, weight=weight, bias=bias) for weight, bias in maps)
        if through_onednn(first):
            sources = (first, second, third, cast(Tensor, self.conv3.bias))
            conv1, conv2, conv3 = self._laid_out.get(sources, lambda: [blocked(*each) for each in maps])
        y = conv1(waveform.unfold(1, 127, 64)).tanh_()
        mean, scale = self._statistics(y, samples)
        if frames is not None:
            y = y[:, : 6 * frames + 7]
        y = torch.addcmul(shifts - scale * mean * gains, conv2(_windows(y, 7, 3)), scale)
        return F.gelu(conv3(_windows(F.gelu(y), 3, 2)))

    def _statistics(self, y: Tensor, samples: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and 1 / standard deviation, (B, 1, 1), of y (B, columns, hidden), in float32 and then y's dtype."""
        wide = y.float() if y.element_size() < 4 else y
        if samples is None:
            mean = wide.mean((1, 2), keepdim=True)
            variance = (wide - mean).square().mean((1, 2), keepdim=True)
        else:
            count = ((samples - 127) // 64 + 1).clamp(min=1)
            inside = (torch.arange(y.shape[1], device=y.device) < count[:, None])[..., None]
            terms = (count * y.shape[2])[:, None, None]
            mean = (wide * inside).sum((1, 2), keepdim=True) / terms
            variance = ((wide - mean).square() * inside).sum((1, 2), keepdim=True) / terms
        return mean.to(y.dtype), (variance + self.groupnorm.eps).rsqrt().to(y.dtype)

    def _matrices(self) -> tuple[Tensor, ...]:
        """The convolutions as matrices of windows, time before channels, the second with the norm's gain folded in;
        its row sums; and its bias with the norm's shift."""
        conv1, conv2, conv3, norm = self.conv1, self.conv2, self.conv3, self.groupnorm

        def lay_out() -> tuple[Tensor, ...]:
            second, third = (conv.weight.transpose(1, 2) for conv in (conv2, conv3))
            gained = second * norm.weight
            gains = gained.double().sum((1, 2)).to(gained.dtype)
            shifts = ((second * norm.bias).double().sum((1, 2)) + cast(Tensor, conv2.bias)).to(gained.dtype)
            return conv1.weight[:, 0], gained.flatten(1), gains, shifts, third.flatten(1)

        sources = (conv1.weight, conv2.weight, cast(Tensor, conv2.bias), conv3.weight, norm.weight, norm.bias)
        return self._folded.get(sources, lay_out)


def _windows(x: Tensor, taps: int, stride: int) -> Tensor:
    """(B, columns, taps * channels), the windows of a convolution over contiguous x (B, T, channels)."""
    channels = x.shape[2]
    return x.flatten(1).unfold(1, taps * channels, stride * channels)
