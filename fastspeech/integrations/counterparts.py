"""The modules of transformers' four families that are served, each by our counterpart of it."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from fastspeech.generation.interface import Record
from fastspeech.integrations.served import Served
from fastspeech.layers.relaid import Product
from fastspeech.models.moonshine.encoder import HOP

_KYUTAI_56 = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "past_key_values",
    "inputs_embeds",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
)


class MoonshineEncoder(Served):
    arguments = (("input_values", "attention_mask"),)

    def compute(self, input_values: Tensor, attention_mask: Tensor | None) -> Any:
        if attention_mask is not None and not _comes_first(attention_mask):
            return None
        found = self.ours(input_values, attention_mask, False, False, False, True)
        record = self.of("MoonshineEncoderModelOutput", "BaseModelOutputWithPast")
        if hasattr(record, "attention_mask"):
            return record(found.last_hidden_state, attention_mask=found.attention_mask)
        return record(found.last_hidden_state)


class ParakeetEncoder(Served):
    arguments = (("input_features", "attention_mask", "output_attention_mask"), ("input_features", "attention_mask"))

    def compute(self, input_features: Tensor, attention_mask: Tensor | None, output_attention_mask: bool | None) -> Any:
        found = self.ours(input_features, attention_mask, output_attention_mask is not False, False, False, True)
        return self.of("ParakeetEncoderModelOutput")(found.last_hidden_state, attention_mask=found.attention_mask)


class Speech2TextEncoder(Served):
    arguments = (
        ("input_features", "attention_mask"),
        ("input_features", "attention_mask", "head_mask", "output_attentions", "output_hidden_states", "return_dict"),
    )

    def compute(self, input_features: Tensor, attention_mask: Tensor | None) -> Any:
        if attention_mask is not None and attention_mask.dim() != 2:
            return None
        found = self.ours(input_features, attention_mask, None, False, False, True)
        return self.of("BaseModelOutput")(found.last_hidden_state)


class Past:
    """A cache of transformers as our decoders know caches."""

    def __init__(self, layers: Any, rows: int) -> None:
        self._layers = layers
        self.owners = rows
        self.length = 0 if layers is None else layers.get_seq_length()
        self.kept = self.length

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return self._layers.update(keys, values, layer)

    def mask(self, tokens: int) -> None:
        """Rows own their memory."""

    def separate(self) -> None:
        """They always are."""

    def advance(self, tokens: int) -> None:
        """Its layers count."""

    def by_token(self, weights: Tensor) -> Tensor:
        return weights


class Decoder(Served):
    """Of an encoder-decoder model."""

    arguments: ClassVar[Sequence[tuple[str, ...]]] = (
        (
            "input_ids",
            "attention_mask",
            "position_ids",
            "past_key_values",
            "inputs_embeds",
            "use_cache",
            "encoder_hidden_states",
            "encoder_attention_mask",
        ),
        (
            "input_ids",
            "attention_mask",
            "position_ids",
            "past_key_values",
            "inputs_embeds",
            "use_cache",
            "cache_position",
            "encoder_hidden_states",
            "encoder_attention_mask",
        ),
    )

    def compute(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
    ) -> Any:
        tokens = inputs_embeds if input_ids is None else input_ids
        encoded, cache = encoder_hidden_states, past_key_values
        config: Any = self.module.config
        use_cache = getattr(config, "use_cache", None) if use_cache is None else use_cache
        if tokens is None or encoded is None or len(encoded) != len(tokens):
            return None
        if input_ids is not None and inputs_embeds is not None:
            return None
        if cache is None and use_cache:
            kind = self.of("DynamicCache")
            cache = self.of("EncoderDecoderCache")(kind(config=config), kind(config=config))
        if cache is not None and not _grows(cache.self_attention_cache, cache.cross_attention_cache):
            return None
        past = None if cache is None else Past(cache.self_attention_cache, len(tokens))
        seen = tokens.shape[1] + (0 if past is None else past.length)
        fits, attention_mask = _of_tokens(attention_mask, len(tokens), seen)
        if not fits:
            return None
        lengths = None
        if encoder_attention_mask is not None:
            valid = self._frames(encoder_attention_mask, encoded.shape[1])
            if valid is None or valid.shape != encoded.shape[:2] or not _comes_first(valid):
                return None
            lengths = valid.sum(-1)
            if valid.device.type == "cpu" and int(lengths.min()) == valid.shape[1]:
                lengths = None
        keys, values = self._cross(encoded, cache)
        last = self.ours.run(
            self._steps(cache, tokens),
            input_ids,
            keys,
            values,
            lengths,
            inputs_embeds=inputs_embeds,
            position_ids=position_ids,
            token_mask=attention_mask,
            cache=past,
        )
        record = self.of("BaseModelOutputWithPastAndCrossAttentions")
        return record(last_hidden_state=last, past_key_values=cache if use_cache else None)

    def _frames(self, mask: Tensor, frames: int) -> Tensor | None:
        return mask if mask.dim() == 2 else None

    def _cross(self, encoded: Tensor, cache: Any) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Keys and values of the encoder's frames by layer; what the cache lacks of them goes there."""
        layers = range(len(self.ours.layers))
        if cache is None or not all(cache.is_updated.get(layer) for layer in layers):
            keys, values = (side.unbind(0) for side in self.ours.cross_keys_values(encoded))
            if cache is None:
                return keys, values
            for layer in layers:
                cache.cross_attention_cache.update(keys[layer], values[layer], layer)
                cache.is_updated[layer] = True
        held = cache.cross_attention_cache.layers
        return [held[layer].keys for layer in layers], [held[layer].values for layer in layers]


class MoonshineDecoder(Decoder):
    def _frames(self, mask: Tensor, frames: int) -> Tensor | None:
        # transformers 4 passes the mask of the samples.
        return mask if mask.shape[1] == frames else mask[:, ::HOP][:, :frames]


class Speech2TextDecoder(Decoder):
    arguments = (
        (
            "input_ids",
            "attention_mask",
            "encoder_hidden_states",
            "encoder_attention_mask",
            "past_key_values",
            "inputs_embeds",
            "use_cache",
        ),
        (
            "input_ids",
            "attention_mask",
            "encoder_hidden_states",
            "encoder_attention_mask",
            "head_mask",
            "cross_attn_head_mask",
            "past_key_values",
            "inputs_embeds",
            "use_cache",
            "output_attentions",
            "output_hidden_states",
            "return_dict",
            "cache_position",
        ),
    )

    def compute(self, **given: Any) -> Any:  # type: ignore[override]
        # Without ids transformers fails, as it takes positions from them.
        return None if given["input_ids"] is None else super().compute(**given)


class KyutaiSpeechToTextModel(Served):
    arguments = (
        ("input_ids", "attention_mask", "position_ids", "past_key_values", "inputs_embeds", "use_cache"),
        _KYUTAI_56,
        (*_KYUTAI_56, "cache_position"),
    )

    def compute(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        past_key_values: Any,
        inputs_embeds: Tensor | None,
        use_cache: bool | None,
    ) -> Any:
        config: Any = self.module.config
        cache = past_key_values
        use_cache = getattr(config, "use_cache", None) if use_cache is None else use_cache
        x: Tensor | None = inputs_embeds
        if input_ids is not None:
            if inputs_embeds is not None or input_ids.dim() != 3:
                return None
            x = self.ours._embedded(input_ids)
        if cache is None and use_cache:
            cache = self.of("DynamicCache")(config=config)
        if x is None or (cache is not None and not _grows(cache)):
            return None
        past = None if cache is None else Past(cache, len(x))
        if past is not None:
            past.kept = min(past.length, config.sliding_window - 1)
            if past.kept < past.length and "cache_position" in self._names:
                # transformers 4 masks what is in a full window by other tokens' places, and gives other results.
                return None
        fits, attention_mask = _of_tokens(attention_mask, len(x), x.shape[1] + (0 if past is None else past.length))
        if not fits:
            return None
        last = self.ours._run(x, attention_mask, position_ids, past, Record(), self._steps(cache, x))
        return self.of("BaseModelOutputWithPast")(last_hidden_state=last, past_key_values=cache)

    def _functions(self, product: Product | None) -> list[Any]:
        return self.ours._steps(product)


def _comes_first(mask: Tensor) -> bool:
    """Whether what is valid in each row of mask (rows, items) precedes what is not."""
    valid = mask.bool()
    return bool((valid[:, 1:] <= valid[:, :-1]).all())


def _of_tokens(mask: Tensor | None, rows: int, tokens: int) -> tuple[bool, Tensor | None]:
    """Whether ours serves a mask of tokens, and that mask, None where it is known to leave out nothing."""
    if mask is None:
        return True, None
    if not isinstance(mask, Tensor) or tuple(mask.shape) != (rows, tokens):
        return False, None
    return True, None if mask.device.type == "cpu" and bool(mask.all()) else mask


def _grows(*caches: Any) -> bool:
    """Whether these are transformers' caches that hold what they were given and no more."""
    return all(
        type(cache).__name__ == "DynamicCache"
        and all(type(layer).__name__ in ("DynamicLayer", "DynamicSlidingWindowLayer") for layer in cache.layers)
        and not any(getattr(layer, "record_past", False) for layer in cache.layers)
        for cache in caches
    )
