"""The settings of Moonshine, with transformers' names and defaults."""

from typing import Any, ClassVar, Self

from fastspeech.checkpoints.config import PretrainedConfig
from fastspeech.layers.activations import Activation

_PER_SIDE = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act")


class MoonshineConfig(PretrainedConfig):
    """A Moonshine model; the defaults are UsefulSensors/moonshine-tiny's sizes.

    The rotary settings are read where transformers 5 writes them, in `rope_parameters`, else where 4 does, as
    `rope_theta`, `rope_scaling` and `partial_rotary_factor`; a saved file holds both. Names without "encoder_" or
    "decoder_" (`num_attention_heads`, ...) are the decoder's, as in transformers 5; in a file that transformers 4 wrote
    they are the encoder's. The decoder's heads need not be the encoder's. (transformers 5 then builds, and saves, a
    decoder with the encoder's heads, and neither version runs grouped ones.)

    Only the default rotary type exists here. `pad_head_dim_to_multiple_of` and `max_position_embeddings` are kept for
    the file only: heads are computed as wide as they are, and positions for any length.

    Args:
        exact_batching: encode each clip of a padded batch as if it were alone. By default the padding takes part in the
            first normalisation and up to two frames of it are attended to, as in transformers, and a clip's transcript
            may depend on what it is batched with.

    Raises:
        ValueError: heads that do not divide the width, key/value heads that do not divide the heads, or another rotary
            type.
    """

    model_type = "moonshine"
    attribute_map: ClassVar[dict[str, str]] = {name: f"decoder_{name}" for name in _PER_SIDE}

    def __init__(
        self,
        vocab_size: int = 32768,
        hidden_size: int = 288,
        intermediate_size: int = 1152,
        encoder_num_hidden_layers: int = 6,
        decoder_num_hidden_layers: int = 6,
        encoder_num_attention_heads: int = 8,
        decoder_num_attention_heads: int = 8,
        encoder_num_key_value_heads: int | None = None,
        decoder_num_key_value_heads: int | None = None,
        pad_head_dim_to_multiple_of: int | None = None,
        encoder_hidden_act: str | Activation = "gelu",
        decoder_hidden_act: str | Activation = "silu",
        max_position_embeddings: int = 512,
        initializer_range: float = 0.02,
        decoder_start_token_id: int = 1,
        use_cache: bool = True,
        rope_theta: float = 10000.0,
        rope_scaling: dict[str, Any] | None = None,
        partial_rotary_factor: float = 0.9,
        is_encoder_decoder: bool = True,
        attention_bias: bool = False,
        attention_dropout: float = 0.0,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 2,
        pad_token_id: int | None = None,
        tie_word_embeddings: bool = True,
        rope_parameters: dict[str, Any] | None = None,
        exact_batching: bool = False,
        **kwargs: Any,
    ) -> None:
        rotary = {**(rope_scaling or {}), **(rope_parameters or {})}
        kind = rotary.get("rope_type", rotary.get("type", "default"))
        if kind != "default":
            raise ValueError(f"rope_type {kind!r} is not implemented; Moonshine's is 'default'")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.encoder_num_hidden_layers = encoder_num_hidden_layers
        self.decoder_num_hidden_layers = decoder_num_hidden_layers
        self.encoder_num_attention_heads = encoder_num_attention_heads
        self.decoder_num_attention_heads = decoder_num_attention_heads
        self.encoder_num_key_value_heads = encoder_num_key_value_heads
        self.decoder_num_key_value_heads = decoder_num_key_value_heads
        self.pad_head_dim_to_multiple_of = pad_head_dim_to_multiple_of
        self.encoder_hidden_act = encoder_hidden_act
        self.decoder_hidden_act = decoder_hidden_act
        self.max_position_embeddings = max_position_embeddings
        self.initializer_range = initializer_range
        self.decoder_start_token_id = decoder_start_token_id
        self.use_cache = use_cache
        self.rope_theta = rotary.get("rope_theta", rope_theta)
        self.rope_scaling = rope_scaling
        self.partial_rotary_factor = rotary.get("partial_rotary_factor", partial_rotary_factor)
        self.attention_bias = attention_bias
        self.attention_dropout = attention_dropout
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        self.tie_word_embeddings = tie_word_embeddings
        self.exact_batching = exact_batching
        super().__init__(is_encoder_decoder=is_encoder_decoder, **kwargs)
        for side in ("encoder", "decoder"):
            self._settle_heads(side)

    def _settle_heads(self, side: str) -> None:
        heads = getattr(self, f"{side}_num_attention_heads")
        kv_heads = getattr(self, f"{side}_num_key_value_heads")
        if self.hidden_size % heads:
            raise ValueError(f"{side}_num_attention_heads ({heads}) must divide hidden_size ({self.hidden_size})")
        if kv_heads is None:
            setattr(self, f"{side}_num_key_value_heads", heads)
        elif kv_heads < 1 or heads % kv_heads:
            raise ValueError(
                f"{side}_num_key_value_heads ({kv_heads}) must divide {side}_num_attention_heads ({heads})"
            )

    @property
    def rope_parameters(self) -> dict[str, Any]:
        """The rotary settings as transformers 5 writes them."""
        return {
            "rope_type": "default",
            "rope_theta": self.rope_theta,
            "partial_rotary_factor": self.partial_rotary_factor,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any], **overrides: Any) -> Self:
        """The configuration of a config.json's content. A name with its side goes before the one without."""
        side = "encoder" if str(values.get("transformers_version", "")).startswith("4.") else "decoder"
        given = {name: value for name, value in values.items() if name not in _PER_SIDE}
        for name in _PER_SIDE:
            if name in values:
                given.setdefault(f"{side}_{name}", values[name])
        return super().from_dict(given, **overrides)

    def to_dict(self) -> dict[str, Any]:
        """Every field, with the rotary settings also as transformers 5 writes them."""
        return super().to_dict() | {"rope_parameters": self.rope_parameters}
