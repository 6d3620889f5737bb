"""Moonshine: an encoder of raw samples and a decoder, with the interface of transformers' page."""

from typing import Any, ClassVar

from torch import Tensor, nn

from fastspeech.checkpoints import PretrainedModel
from fastspeech.generation import DecoderCache, GenerationConfig, GenerationMixin
from fastspeech.layers.initialise import initialise
from fastspeech.layers.seq2seq import EncoderDecoder, WithHead
from fastspeech.layers.specaugment import mask_features
from fastspeech.models.moonshine.config import MoonshineConfig
from fastspeech.models.moonshine.decoder import MoonshineDecoder
from fastspeech.models.moonshine.encoder import MoonshineEncoder
from fastspeech.outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput


class MoonshinePreTrainedModel(PretrainedModel):
    """What the Moonshine models share: loading and saving."""

    config_class = MoonshineConfig
    config: MoonshineConfig
    main_input_name = "input_values"


class MoonshineModel(EncoderDecoder, MoonshinePreTrainedModel):
    """Encoder and decoder, without the head."""

    def __init__(self, config: MoonshineConfig) -> None:
        super().__init__(config)
        self.encoder = MoonshineEncoder(config)
        self.decoder = MoonshineDecoder(config)
        initialise(self, config.initializer_range)

    def _mask_input_features(self, input_features: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """SpecAugment of features (B, channels, T); see `mask_features`. In evaluation mode nothing is masked.

        `forward` does not call this: Moonshine has no features but samples.
        """
        return mask_features(self.config, input_features, attention_mask) if self.training else input_features

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: DecoderCache | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        exact_batching: bool | None = None,
    ) -> Seq2SeqModelOutput | tuple[Any, ...]:
        """Hidden states of U tokens.

        Args:
            input_values: (B, samples) at 16 kHz, at least 895 of them.
            attention_mask: (B, samples), true at the samples of a clip, which come first.
            decoder_input_ids: (B, U) int64.
            decoder_attention_mask: (B, past + U), true at the tokens to attend to; causal in any case.
            encoder_outputs: what the encoder returned before, or a tuple (last_hidden_state, ...).
            past_key_values: the cache a former call returned; then only new tokens are given, and the encoder is not
                needed.
            decoder_inputs_embeds: (B, U, hidden) in place of the ids.
            decoder_position_ids: (B, U) or (1, U) int64; by default they count on from the cache.
            use_cache: return a cache of keys and values. By default where the configuration says so and no gradients
                are recorded, as a cache cannot hold any.
            cache_position: without effect, as the cache knows its length; transformers 4 has it.
            output_attentions, output_hidden_states, return_dict: by default what the configuration says.
            exact_batching: by default what the configuration says; see `MoonshineConfig`.

        Raises:
            ValueError: ids and embeddings both or neither, no audio, or too few samples.
        """

        def encode(with_states: bool, with_weights: bool) -> BaseModelOutput:
            return self.encoded(input_values, attention_mask, exact_batching, with_states, with_weights)

        return self.decoded(
            encode,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            past_key_values,
            decoder_inputs_embeds,
            decoder_position_ids,
            use_cache,
            output_attentions,
            output_hidden_states,
            return_dict,
        )

    def encoded(
        self,
        input_values: Tensor | None,
        attention_mask: Tensor | None,
        exact_batching: bool | None,
        with_states: bool | None = None,
        with_weights: bool | None = None,
    ) -> BaseModelOutput:
        """What the encoder gives for the audio."""
        if input_values is None:
            raise ValueError("give input_values, or the encoder_outputs of a former call")
        return self.encoder(
            input_values,
            attention_mask,
            exact_batching,
            output_hidden_states=with_states,
            output_attentions=with_weights,
            return_dict=True,
        )


class MoonshineForConditionalGeneration(WithHead, GenerationMixin, MoonshinePreTrainedModel):  # type: ignore[misc]
    """The model with its language-modelling head: audio to text."""

    generation_config_class = GenerationConfig
    max_tokens_per_second = 6.5
    audio_inputs: ClassVar[tuple[str, ...]] = ("input_values", "attention_mask", "exact_batching")
    tied_keys: ClassVar[dict[str, str]] = {"proj_out.weight": "model.decoder.embed_tokens.weight"}

    def __init__(self, config: MoonshineConfig) -> None:
        super().__init__(config)
        self.model = MoonshineModel(config)
        self.proj_out = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        initialise(self.proj_out, config.initializer_range)
        self.tie_weights()

    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: DecoderCache | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        cache_position: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        exact_batching: bool | None = None,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Logits of U tokens, and the loss where `labels` are given. Arguments as `MoonshineModel.forward`, and:

        Args:
            labels: (B, U) int64, the token that follows at each place, -100 where none counts. Without decoder inputs
                these are the labels shifted right behind `config.decoder_start_token_id`. The loss is the mean
                cross-entropy over the labels that count, in float32: label u belongs to the logits of token u.
                (transformers 4 shifts the labels a second time.)
            num_items_in_batch: divide the summed loss by this in place of the number of labels that count.

        Raises:
            ValueError: as `MoonshineModel.forward`; labels of another shape than the tokens; labels to shift without a
                padding token in the configuration.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.shifted(labels)
        outputs = self.model(
            input_values,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            past_key_values,
            decoder_inputs_embeds,
            decoder_position_ids,
            use_cache,
            cache_position,
            output_attentions,
            output_hidden_states,
            return_dict=True,
            exact_batching=exact_batching,
        )
        return self.headed(outputs, labels, num_items_in_batch, return_dict)

    def silence(self, rows: int, seconds: float) -> dict[str, Tensor]:
        """As `GenerationMixin.silence`, at 16 kHz."""
        return self.empty(rows, round(16000 * seconds))
