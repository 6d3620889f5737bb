"""The settings of Kyutai STT and of its codec, with transformers' names and defaults."""

import math
from collections.abc import Sequence
from typing import Any, Self

from fastspeech.checkpoints.config import PretrainedConfig
from fastspeech.models.kyutai_stt.keys import is_released_config, translate_config


class MimiConfig(PretrainedConfig):
    """A Mimi codec (Défossez et al. 2024); the defaults are kyutai/mimi, which Kyutai STT listens through.

    The rotary base is read where transformers 5 writes it, in `rope_parameters`, else as `rope_theta`; a saved file
    holds both. Only the encoder half exists here, and of it what the released models are: causal convolutions, padded
    with zeros, one undilated residual block a stage without a shortcut, two latents to a frame.
    The decoder's own fields (`trim_right_ratio`, `upsample_groups`), `max_position_embeddings`, `initializer_range`,
    `attention_dropout`, `use_cache` and `use_streaming` are kept for the file only.

    Raises:
        ValueError: another kind of convolution, rotary positions or frame rate, heads that do not divide the width,
            key/value heads that do not divide the heads, or as many semantic levels as levels.
    """

    model_type = "mimi"

    def __init__(
        self,
        sampling_rate: int = 24000,
        audio_channels: int = 1,
        hidden_size: int = 512,
        num_filters: int = 64,
        num_residual_layers: int = 1,
        upsampling_ratios: Sequence[int] | None = None,
        kernel_size: int = 7,
        last_kernel_size: int = 3,
        residual_kernel_size: int = 3,
        dilation_growth_rate: int = 2,
        use_causal_conv: bool = True,
        pad_mode: str = "constant",
        compress: int = 2,
        trim_right_ratio: float = 1.0,
        codebook_size: int = 2048,
        codebook_dim: int | None = 256,
        num_quantizers: int = 32,
        use_conv_shortcut: bool = False,
        vector_quantization_hidden_dimension: int = 256,
        num_semantic_quantizers: int = 1,
        upsample_groups: int = 512,
        num_hidden_layers: int = 8,
        intermediate_size: int = 2048,
        num_attention_heads: int = 8,
        num_key_value_heads: int = 8,
        head_dim: int | None = None,
        hidden_act: str = "gelu",
        max_position_embeddings: int = 8000,
        initializer_range: float = 0.02,
        norm_eps: float = 1e-5,
        use_cache: bool = False,
        use_streaming: bool = False,
        rope_theta: float = 10000.0,
        rope_parameters: dict[str, Any] | None = None,
        sliding_window: int = 250,
        attention_dropout: float = 0.0,
        layer_scale_initial_scale: float = 0.01,
        attention_bias: bool = False,
        frame_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        rotary = rope_parameters or {}
        kind = rotary.get("rope_type", "default")
        if kind != "default":
            raise ValueError(f"rope_type {kind!r} is not implemented; Mimi's is 'default'")
        self.sampling_rate = sampling_rate
        self.audio_channels = audio_channels
        self.hidden_size = hidden_size
        self.num_filters = num_filters
        self.num_residual_layers = num_residual_layers
        self.upsampling_ratios = list(upsampling_ratios or (8, 6, 5, 4))
        self.kernel_size = kernel_size
        self.last_kernel_size = last_kernel_size
        self.residual_kernel_size = residual_kernel_size
        self.dilation_growth_rate = dilation_growth_rate
        self.use_causal_conv = use_causal_conv
        self.pad_mode = pad_mode
        self.compress = compress
        self.trim_right_ratio = trim_right_ratio
        self.codebook_size = codebook_size
        self.codebook_dim = hidden_size if codebook_dim is None else codebook_dim
        self.num_quantizers = num_quantizers
        self.use_conv_shortcut = use_conv_shortcut
        self.vector_quantization_hidden_dimension = vector_quantization_hidden_dimension
        self.num_semantic_quantizers = num_semantic_quantizers
        self.upsample_groups = upsample_groups
        self.num_hidden_layers = num_hidden_layers
        self.intermediate_size = intermediate_size
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.norm_eps = norm_eps
        self.use_cache = use_cache
        self.use_streaming = use_streaming
        self.rope_theta = rotary.get("rope_theta", rope_theta)
        self.sliding_window = sliding_window
        self.attention_dropout = attention_dropout
        self.layer_scale_initial_scale = layer_scale_initial_scale
        self.attention_bias = attention_bias
        super().__init__(**kwargs)
        # transformers' word for a codec that was saved without its decoder half.
        self.decoder_config = None
        self._check(frame_rate)

    def _check(self, frame_rate: float | None) -> None:
        fixed = {"num_residual_layers": 1, "use_causal_conv": True, "pad_mode": "constant", "use_conv_shortcut": False}
        for name, value in fixed.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name}={getattr(self, name)!r} is not implemented; Mimi's is {value!r}")
        if frame_rate is not None and frame_rate != self.frame_rate:
            raise ValueError(f"frame_rate must be {self.frame_rate}, two latents to a frame, got {frame_rate}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must divide hidden_size ({self.hidden_size})"
            )
        if self.num_key_value_heads < 1 or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads ({self.num_key_value_heads}) must divide "
                f"num_attention_heads ({self.num_attention_heads})"
            )
        if not 0 < self.num_semantic_quantizers < self.num_quantizers:
            raise ValueError(
                f"num_semantic_quantizers ({self.num_semantic_quantizers}) must be at least 1 and below "
                f"num_quantizers ({self.num_quantizers})"
            )

    @property
    def frame_size(self) -> int:
        """Samples of a frame."""
        return 2 * math.prod(self.upsampling_ratios)

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sampling_rate / self.frame_size

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The rotary settings as transformers 5 writes them."""
        return {"rope_type": "default", "rope_theta": self.rope_theta}

    def to_dict(self) -> dict[str, Any]:
        """Every field, with the rotary settings also as transformers 5 writes them."""
        return super().to_dict() | {"rope_parameters": self.rope_parameters}


class KyutaiSpeechToTextConfig(PretrainedConfig):
    """A Kyutai STT model; the defaults are kyutai/stt-2.6b-en's sizes.

    The rotary base is read where transformers 5 writes it, in `rope_parameters`, else as `rope_theta`; a saved file
    holds both. Without either it is 10000, as in transformers 5, though the released models have 100000. Only the
    default rotary type exists here. `max_position_embeddings` is kept for the file only, as positions have no end.

    `from_pretrained` reads the config.json of the original repositories too (see `keys.translate_config`).

    Args:
        bos_token_id: what text begins with. 48000 is no text: it is read as a code, as transformers does.
        audio_pad_token_id: the row of the embedding table that holds zeros, of all rows.
        codec_config: a `MimiConfig`, or its fields; the defaults where None.
        extra_heads_num_heads, extra_heads_dim: the heads that tell pauses, which transformers has not, and the outputs
            of each.

    Raises:
        ValueError: an odd `ffn_dim`, heads that do not divide the width, key/value heads that do not divide the heads,
            tied embeddings, another rotary type, or another number of levels in the codec than of codebooks.
    """

    model_type = "kyutai_speech_to_text"
    codec_config: MimiConfig

    def __init__(
        self,
        codebook_vocab_size: int = 2049,
        vocab_size: int = 4001,
        hidden_size: int = 2048,
        num_hidden_layers: int = 48,
        num_attention_heads: int = 32,
        num_key_value_heads: int | None = None,
        max_position_embeddings: int = 750,
        rope_parameters: dict[str, Any] | None = None,
        hidden_act: str = "silu",
        head_dim: int | None = None,
        initializer_range: float = 0.02,
        use_cache: bool = True,
        sliding_window: int = 375,
        attention_dropout: float = 0.0,
        ffn_dim: int = 11264,
        rms_norm_eps: float = 1e-8,
        num_codebooks: int = 32,
        audio_bos_token_id: int = 2048,
        audio_pad_token_id: int = 69569,
        tie_word_embeddings: bool = False,
        pad_token_id: int | None = 3,
        bos_token_id: int = 48000,
        eos_token_id: int | list[int] | None = None,
        codec_config: MimiConfig | dict[str, Any] | None = None,
        rope_theta: float = 10000.0,
        extra_heads_num_heads: int = 0,
        extra_heads_dim: int = 6,
        **kwargs: Any,
    ) -> None:
        rotary = rope_parameters or {}
        kind = rotary.get("rope_type", "default")
        if kind != "default":
            raise ValueError(f"rope_type {kind!r} is not implemented; Kyutai STT's is 'default'")
        kwargs.pop("frame_size", None)  # the codec's, which config.json repeats
        self.codebook_vocab_size = codebook_vocab_size
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rotary.get("rope_theta", rope_theta)
        self.hidden_act = hidden_act
        self.head_dim = head_dim or hidden_size // num_attention_heads
        self.initializer_range = initializer_range
        self.use_cache = use_cache
        self.sliding_window = sliding_window
        self.attention_dropout = attention_dropout
        self.ffn_dim = ffn_dim
        self.rms_norm_eps = rms_norm_eps
        self.num_codebooks = num_codebooks
        self.audio_bos_token_id = audio_bos_token_id
        self.audio_pad_token_id = audio_pad_token_id
        self.tie_word_embeddings = tie_word_embeddings
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.codec_config = (
            codec_config if isinstance(codec_config, MimiConfig) else MimiConfig.from_dict(codec_config or {})
        )
        self.extra_heads_num_heads = extra_heads_num_heads
        self.extra_heads_dim = extra_heads_dim
        super().__init__(**kwargs)
        self._check()

    def _check(self) -> None:
        heads, kv_heads = self.num_attention_heads, self.num_key_value_heads
        if self.ffn_dim % 2:
            raise ValueError(f"ffn_dim must be even, got {self.ffn_dim}")
        if self.hidden_size % heads:
            raise ValueError(f"num_attention_heads ({heads}) must divide hidden_size ({self.hidden_size})")
        if kv_heads < 1 or heads % kv_heads:
            raise ValueError(f"num_key_value_heads ({kv_heads}) must divide num_attention_heads ({heads})")
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings=True is not implemented: the head has fewer rows than the embeddings")
        if self.num_codebooks != self.codec_config.num_quantizers:
            raise ValueError(
                f"num_codebooks is {self.num_codebooks}, and the codec has {self.codec_config.num_quantizers} levels"
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> Self:
        """The configuration of a config.json's content, in the layout of transformers or the released one."""
        if "rope_theta" in overrides:
            overrides = {"rope_parameters": None} | overrides
        return super().from_dict(translate_config(values) if is_released_config(values) else values, **overrides)

    @property
    def embeddings(self) -> int:
        """Rows of the embedding table: those of the text, of each codebook, and one of zeros."""
        return self.vocab_size + self.num_codebooks * self.codebook_vocab_size + 1

    @property
    def frame_size(self) -> int:
        """Samples of a frame, of which each is a step of the decoder."""
        return self.codec_config.frame_size

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The rotary settings as transformers 5 writes them."""
        return {"rope_type": "default", "rope_theta": self.rope_theta}

    def to_dict(self) -> dict[str, Any]:
        """Every field, with the rotary settings also as transformers 5 writes them."""
        return super().to_dict() | {"rope_parameters": self.rope_parameters, "frame_size": self.frame_size}
