"""What Kyutai STT's decoder is made of, with the parameter names of transformers, and what it keeps of its past."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastspeech.kernels import embed_sum, residual_rms_norm
from fastspeech.layers.activations import activation
from fastspeech.layers.decoder import AddAndNorm
from fastspeech.layers.derived import DerivingModule
from fastspeech.layers.linear import PackedLinear, direct
from fastspeech.layers.relaid import Map, Product
from fastspeech.models.kyutai_stt.config import KyutaiSpeechToTextConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, in float32 and rounded once (Zhang and Sennrich 2019)."""

    def __init__(self, config: KyutaiSpeechToTextConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.eps = config.rms_norm_eps

    def add_and_norm(self) -> Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]:
        """The function of (x, delta) that gives x + delta, or x, and the norm of it."""
        weight, eps = self.weight, self.eps

        def apply(x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
            if delta is not None and delta.dtype != x.dtype:  # autocast: sublayers are narrower than parameters
                delta = delta.to(x.dtype)
            return residual_rms_norm(x, delta, weight, eps)

        return apply


class Wrapped(nn.Module):
    """A linear map under the name it has in checkpoints."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=False)


class Attention(DerivingModule):
    """The projections of self-attention."""

    def __init__(self, config: KyutaiSpeechToTextConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.num_attention_heads * config.head_dim
        shared = config.num_key_value_heads * config.head_dim
        self.q_proj, self.o_proj = Wrapped(width, inner), Wrapped(inner, width)
        self.k_proj, self.v_proj = Wrapped(width, shared), Wrapped(width, shared)
        self._packed = PackedLinear()

    def qkv(self, product: Product | None) -> Map:
        """The function that gives queries, keys and values, concatenated over the last axis; made by `product` where
        that is given, else of the parameters as they lie."""
        maps = self.q_proj.linear, self.k_proj.linear, self.v_proj.linear
        return self._packed.function(maps) if product is None else product(*maps)


class GatedMLP(nn.Module):
    """fc2(act(a) * b), a and b the halves of fc1."""

    def __init__(self, config: KyutaiSpeechToTextConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.ffn_dim, bias=False)
        self.fc2 = nn.Linear(config.ffn_dim // 2, config.hidden_size, bias=False)
        self.activation = activation(config.hidden_act)

    def function(self, product: Product) -> Map:
        """The sublayer as a function of its present parameters."""
        up, act, down = product(self.fc1), self.activation, product(self.fc2)

        def run(h: Tensor) -> Tensor:
            gate, value = up(h).chunk(2, dim=-1)
            return down(act(gate) * value)

        return run


@dataclass(slots=True)
class Step:
    """A pre-norm layer as functions of its present parameters, as in `fastspeech.layers.decoder.Step`."""

    qkv: Map
    out: Map
    norm_mlp: AddAndNorm
    mlp: Map
    norm_next: AddAndNorm


class Layer(nn.Module):
    """The parameters of one layer, which the model runs."""

    def __init__(self, config: KyutaiSpeechToTextConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = GatedMLP(config)
        self.input_layernorm = RMSNorm(config)
        self.post_attention_layernorm = RMSNorm(config)

    def step(self, next_norm: RMSNorm, product: Product | None) -> Step:
        """The layer as functions of its present parameters, its linear maps made by `product` where it is given."""
        single = product or direct
        return Step(
            qkv=self.self_attn.qkv(product),
            out=single(self.self_attn.o_proj.linear),
            norm_mlp=self.post_attention_layernorm.add_and_norm(),
            mlp=self.mlp.function(single),
            norm_next=next_norm.add_and_norm(),
        )


class Embeddings(nn.Module):
    """The sum of the embeddings of a text token and of the codes beside it, all of one table."""

    audio_tokens_offsets: Tensor

    def __init__(self, config: KyutaiSpeechToTextConfig) -> None:
        super().__init__()
        self.config = config
        self.pad_id = config.audio_pad_token_id
        self.embed_tokens = nn.Embedding(config.embeddings, config.hidden_size, self.pad_id)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        config = self.config
        starts = [0, *(config.vocab_size + i * config.codebook_vocab_size for i in range(config.num_codebooks))]
        self.register_buffer("audio_tokens_offsets", torch.tensor(starts), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(..., 1 + codebooks) int64 to (..., hidden). An id that is `audio_pad_token_id` is that row of the table; any
        other is counted from the beginning of its column's vocabulary."""
        weight = self.embed_tokens.weight
        if torch.is_grad_enabled() and weight.requires_grad:
            # The module trains all rows but that of the padding.
            rows = torch.where(input_ids == self.pad_id, input_ids, input_ids + self.audio_tokens_offsets)
            return self.embed_tokens(rows).sum(-2)
        return embed_sum(input_ids, weight, self.audio_tokens_offsets, self.pad_id)


class KeyValueCache:
    """Keys and values of the tokens that `forward` read and that its next tokens still see.

    Of the past it keeps the last `window` - 1 tokens, so that one further token sees `window`. Those of a first call,
    and those of one later call among themselves, all see each other, whatever the window: it is so in transformers.

    Attributes:
        length: the tokens read so far.
    """

    def __init__(self, layers: int, window: int) -> None:
        self.length = 0
        self._window = window
        self._kept: list[tuple[Tensor, Tensor] | None] = [None] * layers

    @property
    def kept(self) -> int:
        """The tokens of the past that the next one sees."""
        return min(self.length, self._window - 1)

    def get_seq_length(self) -> int:
        """`length`, under the name transformers' caches give it."""
        return self.length

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The keys and values (rows, kv_heads, tokens, head_dim) of a layer with those kept of the past in front."""
        if (past := self._kept[layer]) is not None:
            keys, values = torch.cat((past[0], keys), 2), torch.cat((past[1], values), 2)
        first = max(keys.shape[2] - self._window + 1, 0)
        self._kept[layer] = keys[:, :, first:], values[:, :, first:]
        return keys, values

    def advance(self, tokens: int) -> None:
        """Count `tokens` as read, after every layer has appended them."""
        self.length += tokens


@dataclass
class DecoderState:
    """Where the texts of a number of streams are, one a slot; nothing of it is ever on the host.

    Attributes:
        pages: for each layer the keys and values, (slots, kv_heads, capacity, head_dim), rings in which position p of
            a stream has the place p % capacity.
        positions: (slots,) int64, tokens that a stream has read.
        steps: the layers, as functions of the parameters that the streams began with.
    """

    pages: list[tuple[Tensor, Tensor]]
    positions: Tensor
    steps: list[Step]

    def first(self, slots: int) -> "DecoderState":
        """The state of the first slots, in the same memory."""
        pages = [(keys[:slots], values[:slots]) for keys, values in self.pages]
        return DecoderState(pages, self.positions[:slots], self.steps)

    def reset(self, slots: Tensor | None = None) -> None:
        """Make `slots` (k,) int64, or all, as good as new."""
        # The pages may keep what is in them: nothing sees a position that its stream has not come to.
        if slots is None:
            self.positions.zero_()
        else:
            self.positions.index_fill_(0, slots, 0)
