"""The encoder half of Mimi (Défossez et al., Moshi, 2024), the codec that Kyutai STT listens through.

From 24 kHz samples to 12.5 frames of codes a second: a SEANet of causal convolutions, a Transformer with a sliding
window, a convolution that halves the rate, and a split residual quantiser. Everything is causal, so there is one way
through the model, a piece of some streams at a time; a whole recording is a stream of few pieces. Activations are laid
out (rows, time, channels). The parameters have the names of transformers' checkpoints.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastspeech.checkpoints import PretrainedModel
from fastspeech.kernels import causal_conv, page_append, paged_attention, residual_vq
from fastspeech.kernels.onednn import linear, through_onednn
from fastspeech.kernels.tiled_linear import in_tiles
from fastspeech.layers.activations import activation
from fastspeech.layers.attention import Projections
from fastspeech.layers.derived import Derived, DerivingModule
from fastspeech.layers.relaid import Map, blocked, streams_tiles
from fastspeech.layers.residual import add_and_norm
from fastspeech.models.kyutai_stt.config import MimiConfig
from fastspeech.outputs import ModelOutput

_PIECE = 32
"""Frames, of all rows together, that `encode` takes at a time."""


@dataclass(eq=False)
class MimiEncoderOutput(ModelOutput):
    """What `MimiModel.encode` returns: audio_codes (B, levels, frames) int64, the semantic levels first."""

    audio_codes: Tensor | None = None


class CausalConv(DerivingModule):
    """A convolution over (B, T, inputs) that continues from the last `past` frames it saw."""

    def __init__(self, inputs: int, outputs: int, taps: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, taps, stride, bias=bias)
        self.stride, self.past, self.width = stride, taps - stride, inputs
        self._matrix = Derived()
        self._tiles = Derived()

    def forward(
        self, x: Tensor, past: Tensor, elu: bool = True, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The convolution of ELU(x), or of x, plus `residual`, and the past of the next call.

        What x lacks to a multiple of the stride is filled with zeros, which a stream does only at its end.
        """
        if x.shape[1] % self.stride:
            x = F.pad(x, (0, 0, 0, -x.shape[1] % self.stride))
        weight, bias = self.conv.weight, self.conv.bias
        if not torch.is_grad_enabled() and through_onednn(weight) and streams_tiles():
            # Of a few streams the wide convolutions have so few windows that reading the filters takes longest.
            from fastspeech.kernels.causal_conv.cuda import by_tiles

            tiles = self._tiles.get((weight,), lambda: in_tiles(weight.transpose(1, 2).flatten(1)))
            return by_tiles(tiles, len(weight), bias, residual, self.stride, elu, x, past)
        matrix = self._matrix.get((weight,), lambda: weight.transpose(1, 2).flatten(1))
        return causal_conv(x, past, matrix, bias, residual, self.stride, elu)


class ResidualBlock(nn.Module):
    """Two convolutions around which x is added; their ELUs are theirs, and keep their place in the names."""

    def __init__(self, width: int, config: MimiConfig) -> None:
        super().__init__()
        hidden = width // config.compress
        first, second = CausalConv(width, hidden, config.residual_kernel_size), CausalConv(hidden, width, 1)
        self.block = nn.ModuleList([nn.ELU(), first, nn.ELU(), second])


class SEANet(nn.Module):
    """Samples to latents, one of them for every product of the ratios."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        width = config.num_filters
        layers: list[nn.Module] = [CausalConv(config.audio_channels, width, config.kernel_size)]
        for ratio in reversed(config.upsampling_ratios):
            layers += [ResidualBlock(width, config), nn.ELU(), CausalConv(width, 2 * width, 2 * ratio, ratio)]
            width *= 2
        layers += [nn.ELU(), CausalConv(width, config.hidden_size, config.last_kernel_size)]
        self.layers = nn.ModuleList(layers)

    def convolutions(self) -> list[CausalConv]:
        """Every convolution in the order of their use."""
        return [module for module in self.modules() if isinstance(module, CausalConv)]

    def forward(self, x: Tensor, pasts: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """x (B, samples, channels) to latents (B, T, hidden); what each convolution saw before, and sees hereafter."""
        left, seen = iter(pasts), []

        def through(conv: nn.Module, x: Tensor, elu: bool = True, residual: Tensor | None = None) -> Tensor:
            y, past = conv(x, next(left), elu, residual)
            seen.append(past)
            return y

        x = through(self.layers[0], x, elu=False)
        for layer in self.layers[1:]:
            if isinstance(layer, ResidualBlock):
                x = through(layer.block[3], through(layer.block[1], x), residual=x)
            elif isinstance(layer, CausalConv):
                x = through(layer, x)
        return x, seen


class MLP(nn.Module):
    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)


class LayerScale(nn.Module):
    """A factor for each channel of what a sublayer adds (Touvron et al. 2021)."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((config.hidden_size,), config.layer_scale_initial_scale))


class Layer(DerivingModule):
    """A pre-norm layer, from one norm to the next. The layer scales are folded into the maps before them."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.window = config.head_dim, config.sliding_window
        bias = config.attention_bias
        self.self_attn = Projections(width, self.heads, self.kv_heads, self.head_dim, bias, bias)
        self.mlp = MLP(config)
        self.activation = activation(config.hidden_act)
        self.input_layernorm = nn.LayerNorm(width, config.norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(width, config.norm_eps)
        self.self_attn_layer_scale = LayerScale(config)
        self.mlp_layer_scale = LayerScale(config)
        self._laid_out = Derived()

    def forward(
        self,
        x: Tensor,
        h: Tensor,
        pages: tuple[Tensor, Tensor],
        table: Tensor | None,
        positions: Tensor,
        inv_freq: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """x (B, n, hidden) and its norm h to x before the last sum, and what is to be added. Keys and values are
        written to `pages`."""
        qkv, out, first, second = self._maps()
        by_head = qkv(h).unflatten(-1, (-1, self.head_dim))
        q, k, v = by_head.split([self.heads, self.kv_heads, self.kv_heads], dim=2)
        page_append(k, v, *pages, table, positions, inv_freq=inv_freq)
        y = paged_attention(q, *pages, table, positions, inv_freq=inv_freq, window=self.window)
        x, h = add_and_norm(self.post_attention_layernorm)(x, out(y.flatten(2)))
        return x, second(self.activation(first(h)))

    def _maps(self) -> tuple[Map, ...]:
        """Queries, keys and values together; the attention's output; the MLP's two maps."""
        attention, mlp = self.self_attn, self.mlp
        maps = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.fc1, mlp.fc2
        biases = [linear.bias for linear in maps if linear.bias is not None]
        scales = self.self_attn_layer_scale.scale, self.mlp_layer_scale.scale
        return self._laid_out.get([*(linear.weight for linear in maps), *biases, *scales], self._lay_out)

    def _lay_out(self) -> tuple[Map, ...]:
        attention, mlp = self.self_attn, self.mlp
        scales = self.self_attn_layer_scale.scale, self.mlp_layer_scale.scale
        inward, out = (attention.q_proj, attention.k_proj, attention.v_proj), attention.o_proj
        weights = [linear.weight.detach() for linear in inward]
        biases = [linear.bias.detach() for linear in inward if linear.bias is not None]
        bias = None if out.bias is None else out.bias * scales[0]
        return (
            blocked(torch.cat(weights), torch.cat(biases) if biases else None),
            blocked(out.weight * scales[0][:, None], bias),
            blocked(mlp.fc1.weight),
            blocked(mlp.fc2.weight * scales[1][:, None]),
        )


class Transformer(DerivingModule):
    """Latents to latents; each attends to the last `sliding_window` of its stream."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.head_dim, self.base = config.head_dim, config.rope_theta
        self._inv_freq = Derived()

    def forward(self, x: Tensor, state: "MimiState", table: Tensor | None, positions: Tensor) -> Tensor:
        """x (B, n, hidden) at positions, positions + 1, ... (B,) of the streams whose pages `table` names."""
        inv_freq = self.inverse_frequencies()
        layers = cast(list[Layer], list(self.layers))
        h = layers[0].input_layernorm(x)
        for layer, pages, following in zip(layers, state.pages, [*layers[1:], None], strict=True):
            x, delta = layer(x, h, pages, table, positions, inv_freq)
            if following is not None:
                x, h = add_and_norm(following.input_layernorm)(x, delta)
        return x + delta

    def inverse_frequencies(self) -> Tensor:
        """(head_dim / 2,) float32, the angles by which a step of one position turns."""
        weight = cast(Layer, self.layers[0]).input_layernorm.weight

        def compute() -> Tensor:
            # As transformers computes them, to the last bit: far into a stream it turns angles.
            exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=weight.device) / self.head_dim
            return 1.0 / self.base**exponents

        return self._inv_freq.get((weight,), compute)


class Codebook(nn.Module):
    """The entries of a level, as sums and counts of what was assigned to them."""

    initialized: Tensor
    cluster_usage: Tensor
    embed_sum: Tensor

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.register_buffer("initialized", torch.ones(1))
        self.register_buffer("cluster_usage", torch.ones(config.codebook_size))
        self.register_buffer("embed_sum", torch.zeros(config.codebook_size, config.codebook_dim))


class Level(nn.Module):
    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.codebook = Codebook(config)


class ResidualQuantizer(nn.Module):
    """Levels that quantise one after another, and the projections before the first and, for decoding, after all."""

    def __init__(self, config: MimiConfig, levels: int) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.vector_quantization_hidden_dimension
        self.layers = nn.ModuleList(Level(config) for _ in range(levels))
        self.input_proj = nn.Conv1d(width, inner, 1, bias=False) if inner != width else None
        self.output_proj = nn.Conv1d(inner, width, 1, bias=False) if inner != width else None


class SplitQuantizer(DerivingModule):
    """The quantiser of meaning and that of sound, both of the same latents."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        semantic, levels = config.num_semantic_quantizers, config.num_quantizers
        self.semantic_residual_vector_quantizer = ResidualQuantizer(config, semantic)
        self.acoustic_residual_vector_quantizer = ResidualQuantizer(config, levels - semantic)
        self.semantic, self.levels = semantic, levels
        self._codebooks = Derived()
        self._projections = Derived()

    def forward(self, latents: Tensor, levels: int) -> Tensor:
        """Codes (B, levels, T) of latents (B, T, hidden), by the first of all levels."""
        rows, frames, _ = latents.shape
        groups = self.semantic_residual_vector_quantizer, self.acoustic_residual_vector_quantizer
        splits = [self.semantic, levels - self.semantic][: 1 + (levels > self.semantic)]
        first, second = (group.input_proj for group in groups)
        if first is None or second is None:
            projected = latents.flatten(0, 1).expand(len(splits), -1, -1)
        else:
            weights = first.weight, second.weight
            matrix = self._projections.get(weights, lambda: torch.cat(weights)[..., 0])
            projected = linear(latents.flatten(0, 1), matrix).unflatten(1, (2, -1)).transpose(0, 1)[: len(splits)]
        books = [cast(Level, level).codebook for group in groups for level in group.layers]
        sources = [tensor for book in books for tensor in (book.embed_sum, book.cluster_usage)]
        codebooks = self._codebooks.get(
            sources,
            lambda: torch.stack([book.embed_sum / book.cluster_usage.clamp(min=1e-5)[:, None] for book in books]),
        )
        codes = residual_vq(projected, codebooks[:levels], splits)
        return codes.unflatten(0, (rows, frames)).transpose(1, 2)


@dataclass
class MimiState:
    """Where a number of streams are, one a slot; all of it on the model's device.

    Attributes:
        pasts: (slots, floats), what the convolutions saw last, one after another.
        pages: for each layer the keys and values, (slots, kv_heads, capacity, head_dim), rings in which position p of
            a stream has the place p % capacity.
        positions: (slots,) int64, latents that a stream has had.
        frames: how many frames fit the rings at a time.
    """

    pasts: Tensor
    pages: list[tuple[Tensor, Tensor]]
    positions: Tensor
    frames: int

    def first(self, slots: int) -> "MimiState":
        """The state of the first slots, in the same memory."""
        pages = [(keys[:slots], values[:slots]) for keys, values in self.pages]
        return MimiState(self.pasts[:slots], pages, self.positions[:slots], self.frames)

    def reset(self, slots: Tensor | None = None) -> None:
        """Make `slots` (k,) int64, or all, as good as new."""
        # The pages may keep what is in them: nothing sees a position that its stream has not come to.
        for tensor in (self.pasts, self.positions):
            if slots is None:
                tensor.zero_()
            else:
                tensor.index_fill_(0, slots, 0)


class MimiModel(PretrainedModel):
    """The encoder half of Mimi: samples to codes, offline and as streams.

    It is float32 whatever it is cast to, alone or within a model, and under autocast, as rounding changes codes. The
    decoder half of a checkpoint is left out, and is not saved.
    """

    config_class = MimiConfig
    config: MimiConfig
    base_model_prefix = "mimi"
    main_input_name = "input_values"
    fixed_dtype = torch.float32

    def __init__(self, config: MimiConfig) -> None:
        super().__init__(config)
        self.encoder = SEANet(config)
        self.encoder_transformer = Transformer(config)
        self.downsample = CausalConv(config.hidden_size, config.hidden_size, 4, 2, bias=False)
        self.quantizer = SplitQuantizer(config)
        self._pasts = [(conv.past, conv.width) for conv in (*self.encoder.convolutions(), self.downsample)]
        self._floats = [past * width for past, width in self._pasts]

    @staticmethod
    def key_map(name: str) -> str | None:
        """Leaves out the decoder half."""
        return None if name.startswith(("decoder.", "decoder_transformer.", "upsample.")) else name

    def get_encoded_length(self, input_length: int | Tensor) -> Tensor:
        """Frames that `encode` makes of so many samples."""
        return -(-torch.as_tensor(input_length) // self.config.frame_size)

    def start(self, slots: int, frames: int = 1) -> MimiState:
        """The state of so many streams that have not begun. `frames`: how many of them a call of `encode_frames` will
        bring; it may bring more, and then takes them in parts."""
        config = self.config
        latents = max(config.sliding_window + 2 * frames - 1, 1)
        capacity = math.ceil(latents / 16) * 16
        shape = (slots, config.num_key_value_heads, capacity, config.head_dim)
        # What is made in inference mode could not be written to outside it.
        with torch.inference_mode(False):
            zeros = partial(torch.zeros, device=self.device)
            return MimiState(
                zeros(slots, sum(self._floats)),
                [(zeros(shape), zeros(shape)) for _ in range(config.num_hidden_layers)],
                zeros(slots, dtype=torch.int64),
                (capacity - config.sliding_window + 1) // 2,
            )

    @torch.no_grad()
    def encode_frames(
        self, samples: Tensor, state: MimiState, slots: Tensor | None = None, active: Tensor | None = None
    ) -> Tensor:
        """The codes of the next frames of some streams.

        Args:
            samples: (rows, audio_channels, n * frame_size), the next samples of each.
            state: what `start` gave; of it, the slots named are read and written.
            slots: (rows,) int64, distinct, the slot of each row; None where row r is slot r, all of them.
            active: (rows,) bool, false where a row is none: its slot stays as it is, and what it gives says nothing.

        Returns:
            (rows, num_quantizers, n) int64. A row depends on its own stream alone, and not on how it was cut.

        Raises:
            ValueError: samples of another shape, no whole number of frames, or rows that are not as many as slots.
        """
        size, rows = self.config.frame_size, len(state.positions) if slots is None else len(slots)
        if samples.dim() != 3 or samples.shape[:2] != (rows, self.config.audio_channels):
            raise ValueError(
                f"samples must be ({rows}, {self.config.audio_channels}, samples), got {tuple(samples.shape)}"
            )
        if samples.shape[2] == 0 or samples.shape[2] % size:
            raise ValueError(f"samples must be whole frames of {size}, got {samples.shape[2]}")
        return self._codes(samples, state, slots, self.config.num_quantizers, active)

    @torch.no_grad()
    def encode(
        self,
        input_values: Tensor,
        padding_mask: Tensor | None = None,
        num_quantizers: int | None = None,
        return_dict: bool | None = None,
    ) -> MimiEncoderOutput | tuple[Any, ...]:
        """The codes of whole recordings.

        Args:
            input_values: (B, audio_channels, samples) floating.
            padding_mask: without effect, as in transformers: everything is causal, so padding behind a recording
                changes none of its codes but the last, where that is of a frame it ends in.
            num_quantizers: how many levels, all by default.
            return_dict: by default what the configuration says.

        Returns:
            `MimiEncoderOutput` with audio_codes (B, num_quantizers, ceil(samples / frame_size)), or a tuple. The last
            frame of a recording that is no whole number of frames is filled at each convolution, as in transformers.

        Raises:
            ValueError: samples of another shape, or a number of levels that there is not.
        """
        config = self.config
        if input_values.dim() != 3 or input_values.shape[1] != config.audio_channels or not input_values.shape[2]:
            raise ValueError(
                f"input_values must be (batch, {config.audio_channels}, samples), got {tuple(input_values.shape)}"
            )
        levels = config.num_quantizers if num_quantizers is None else num_quantizers
        if not config.num_semantic_quantizers <= levels <= config.num_quantizers:
            raise ValueError(
                f"num_quantizers must be from {config.num_semantic_quantizers} to {config.num_quantizers}, got {levels}"
            )
        rows = input_values.shape[0]
        output = MimiEncoderOutput(self._codes(input_values, self.start(rows, max(_PIECE // rows, 1)), None, levels))
        return_dict = config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def _codes(
        self, samples: Tensor, state: MimiState, slots: Tensor | None, levels: int, active: Tensor | None = None
    ) -> Tensor:
        pieces = samples.float().split(state.frames * self.config.frame_size, dim=2)
        with torch.autocast(samples.device.type, enabled=False):
            latents = torch.cat([self._latents(piece, state, slots, active) for piece in pieces], dim=1)
            return self.quantizer(latents, levels)

    def _latents(
        self, samples: Tensor, state: MimiState, slots: Tensor | None, active: Tensor | None = None
    ) -> Tensor:
        """(rows, frames, hidden) of as many samples (rows, channels, samples) as the rings have room for."""
        pasts = state.pasts if slots is None else state.pasts[slots]
        positions = state.positions if slots is None else state.positions[slots]
        parts = zip(pasts.split(self._floats, dim=1), self._pasts, strict=True)
        views = [part.unflatten(1, size) for part, size in parts]

        x, seen = self.encoder(samples.transpose(1, 2), views[:-1])
        table = None if slots is None else slots[:, None].int()
        at = positions if active is None else positions.masked_fill(active.logical_not(), -1)
        x = self.encoder_transformer(x, state, table, at)
        latents = x.shape[1]
        if latents % 2:
            x = torch.cat([x, x[:, -1:]], dim=1)
        # Before its first latent a stream had nothing but that latent.
        past = torch.where((positions == 0)[:, None, None], x[:, :1], views[-1])
        x, last = self.downsample(x, past, elu=False)

        now = torch.cat([part.flatten(1) for part in (*seen, last)], dim=1)
        further = positions + latents
        if active is not None:
            now, further = torch.where(active[:, None], now, pasts), torch.where(active, further, positions)
        if slots is None:
            state.pasts.copy_(now)
            state.positions.copy_(further)
        else:
            state.pasts.index_copy_(0, slots, now)
            state.positions.index_copy_(0, slots, further)
        return x
