"""The settings of Speech2Text, with transformers' names and defaults."""

from collections.abc import Sequence
from typing import Any, ClassVar

from fastspeech.checkpoints.config import PretrainedConfig
from fastspeech.layers.activations import Activation


class Speech2TextConfig(PretrainedConfig):
    """A Speech2Text model; the defaults are facebook/s2t-small-librispeech-asr.

    `max_source_positions` and `max_target_positions` are the sizes that the tables of positions begin with; they grow
    where more are needed.

    Raises:
        ValueError: heads that do not divide the width, or kernel sizes for another number of convolutions.
    """

    model_type = "speech_to_text"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }

    def __init__(
        self,
        vocab_size: int = 10000,
        encoder_layers: int = 12,
        encoder_ffn_dim: int = 2048,
        encoder_attention_heads: int = 4,
        decoder_layers: int = 6,
        decoder_ffn_dim: int = 2048,
        decoder_attention_heads: int = 4,
        encoder_layerdrop: float = 0.0,
        decoder_layerdrop: float = 0.0,
        use_cache: bool = True,
        is_encoder_decoder: bool = True,
        activation_function: str | Activation = "relu",
        d_model: int = 256,
        dropout: float = 0.1,
        attention_dropout: float = 0.0,
        activation_dropout: float = 0.0,
        init_std: float = 0.02,
        decoder_start_token_id: int = 2,
        scale_embedding: bool = True,
        pad_token_id: int = 1,
        bos_token_id: int | None = 0,
        eos_token_id: int | list[int] | None = 2,
        max_source_positions: int = 6000,
        max_target_positions: int = 1024,
        num_conv_layers: int = 2,
        conv_kernel_sizes: Sequence[int] = (5, 5),
        conv_channels: int = 1024,
        input_feat_per_channel: int = 80,
        input_channels: int = 1,
        tie_word_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        if len(conv_kernel_sizes) != num_conv_layers:
            raise ValueError(
                f"conv_kernel_sizes has {len(conv_kernel_sizes)} sizes for num_conv_layers={num_conv_layers}"
            )
        for side, heads in (("encoder", encoder_attention_heads), ("decoder", decoder_attention_heads)):
            if d_model % heads:
                raise ValueError(f"d_model ({d_model}) must be a multiple of {side}_attention_heads ({heads})")
        self.vocab_size = vocab_size
        self.encoder_layers = encoder_layers
        self.encoder_ffn_dim = encoder_ffn_dim
        self.encoder_attention_heads = encoder_attention_heads
        self.decoder_layers = decoder_layers
        self.decoder_ffn_dim = decoder_ffn_dim
        self.decoder_attention_heads = decoder_attention_heads
        self.encoder_layerdrop = encoder_layerdrop
        self.decoder_layerdrop = decoder_layerdrop
        self.use_cache = use_cache
        self.activation_function = activation_function
        self.d_model = d_model
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.activation_dropout = activation_dropout
        self.init_std = init_std
        self.decoder_start_token_id = decoder_start_token_id
        self.scale_embedding = scale_embedding
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.max_source_positions = max_source_positions
        self.max_target_positions = max_target_positions
        self.num_conv_layers = num_conv_layers
        self.conv_kernel_sizes = list(conv_kernel_sizes)
        self.conv_channels = conv_channels
        self.input_feat_per_channel = input_feat_per_channel
        self.input_channels = input_channels
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(is_encoder_decoder=is_encoder_decoder, **kwargs)
