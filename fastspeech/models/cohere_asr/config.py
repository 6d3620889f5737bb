"""The settings of CohereAsr and of its encoder, with transformers' names and defaults."""

from typing import Any, Self

from fastspeech.checkpoints.config import PretrainedConfig
from fastspeech.layers.activations import Activation
from fastspeech.models.cohere_asr.keys import is_released_config, translate_config


class ParakeetEncoderConfig(PretrainedConfig):
    """A FastConformer encoder (Rekesh et al. 2023).

    `max_position_embeddings` is kept for the file only: relative positions are computed for any length.
    """

    model_type = "parakeet_encoder"

    def __init__(
        self,
        hidden_size: int = 1024,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 8,
        intermediate_size: int = 4096,
        hidden_act: str | Activation = "silu",
        attention_bias: bool = True,
        convolution_bias: bool = True,
        conv_kernel_size: int = 9,
        subsampling_factor: int = 8,
        subsampling_conv_channels: int = 256,
        num_mel_bins: int = 80,
        subsampling_conv_kernel_size: int = 3,
        subsampling_conv_stride: int = 2,
        dropout: float = 0.1,
        dropout_positions: float = 0.0,
        layerdrop: float = 0.1,
        activation_dropout: float = 0.1,
        attention_dropout: float = 0.1,
        max_position_embeddings: int = 5000,
        scale_input: bool = True,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.attention_bias = attention_bias
        self.convolution_bias = convolution_bias
        self.conv_kernel_size = conv_kernel_size
        self.subsampling_factor = subsampling_factor
        self.subsampling_conv_channels = subsampling_conv_channels
        self.num_mel_bins = num_mel_bins
        self.subsampling_conv_kernel_size = subsampling_conv_kernel_size
        self.subsampling_conv_stride = subsampling_conv_stride
        self.dropout = dropout
        self.dropout_positions = dropout_positions
        self.layerdrop = layerdrop
        self.activation_dropout = activation_dropout
        self.attention_dropout = attention_dropout
        self.max_position_embeddings = max_position_embeddings
        self.scale_input = scale_input
        self.initializer_range = initializer_range
        kwargs["num_key_value_heads"] = num_attention_heads
        super().__init__(**kwargs)


_ENCODER_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1280,
    "num_hidden_layers": 48,
    "intermediate_size": 5120,
    "num_mel_bins": 128,
    "dropout": 0.0,
    "layerdrop": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "scale_input": False,
}
"""Where CohereAsr's encoder differs from a Parakeet encoder's defaults."""


class CohereAsrConfig(PretrainedConfig):
    """A CohereAsr model; the defaults are CohereLabs/cohere-transcribe-03-2026.

    The fields without prefix are the decoder's. `encoder_config` is a `ParakeetEncoderConfig`, or a dictionary of
    those of its fields that differ from the released model's. `from_dict` and `from_pretrained` also read the
    released file, which has NeMo's names.

    Raises:
        ValueError: query heads that key/value heads do not divide.
    """

    model_type = "cohere_asr"

    def __init__(
        self,
        encoder_config: dict[str, Any] | ParakeetEncoderConfig | None = None,
        vocab_size: int = 16384,
        hidden_size: int = 1024,
        num_hidden_layers: int = 8,
        num_attention_heads: int = 8,
        num_key_value_heads: int | None = None,
        intermediate_size: int = 4096,
        hidden_act: str | Activation = "relu",
        max_position_embeddings: int = 1024,
        pad_token_id: int | None = 2,
        eos_token_id: int | None = 3,
        bos_token_id: int | None = 4,
        is_encoder_decoder: bool = True,
        use_cache: bool = True,
        initializer_range: float = 0.02,
        attention_dropout: float = 0.0,
        attention_bias: bool = True,
        decoder_start_token_id: int | None = None,
        tie_word_embeddings: bool = False,
        head_dim: int | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(encoder_config, ParakeetEncoderConfig):
            fields = {**_ENCODER_DEFAULTS, **(encoder_config or {})}
            encoder_config = ParakeetEncoderConfig(**fields)
        self.encoder_config = encoder_config
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        if num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.pad_token_id = pad_token_id
        self.eos_token_id = eos_token_id
        self.bos_token_id = bos_token_id
        self.use_cache = use_cache
        self.initializer_range = initializer_range
        self.attention_dropout = attention_dropout
        self.attention_bias = attention_bias
        self.decoder_start_token_id = decoder_start_token_id
        self.tie_word_embeddings = tie_word_embeddings
        self.head_dim = hidden_size // num_attention_heads if head_dim is None else head_dim
        super().__init__(is_encoder_decoder=is_encoder_decoder, **kwargs)

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> Self:
        """The configuration of a config.json's content, in transformers' layout or the released one."""
        return super().from_dict(translate_config(values) if is_released_config(values) else values, **overrides)
