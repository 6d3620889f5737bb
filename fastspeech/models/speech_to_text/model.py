"""Speech2Text: a convolutional Transformer encoder and a Transformer decoder, with the interface of transformers' page.

From fairseq S2T (Wang et al. 2020), for speech recognition and translation.
"""

from functools import partial
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from fastspeech.checkpoints import PretrainedModel
from fastspeech.generation import DecoderCache, GenerationConfig, GenerationMixin
from fastspeech.layers.initialise import initialise
from fastspeech.layers.seq2seq import EncoderDecoder, WithHead, as_encoder_output
from fastspeech.models.speech_to_text.config import Speech2TextConfig
from fastspeech.models.speech_to_text.decoder import Speech2TextDecoder
from fastspeech.models.speech_to_text.encoder import Speech2TextEncoder
from fastspeech.outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput


class Speech2TextPreTrainedModel(PretrainedModel):
    """What the Speech2Text models share: loading and saving."""

    config_class = Speech2TextConfig
    config: Speech2TextConfig

    @staticmethod
    def key_map(name: str) -> str | None:
        """As `PretrainedModel.key_map`. Old checkpoints hold tables of positions, which are computed here."""
        return None if ".embed_positions." in f".{name}" else name


class Speech2TextModel(EncoderDecoder, Speech2TextPreTrainedModel):
    """Encoder and decoder, without the head."""

    encoder: Speech2TextEncoder
    decoder: Speech2TextDecoder

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__(config)
        self.encoder = Speech2TextEncoder(config)
        self.decoder = Speech2TextDecoder(config)
        initialise(self, config.init_std)

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: DecoderCache | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
    ) -> Seq2SeqModelOutput | tuple[Any, ...]:
        """Hidden states of U tokens.

        Args:
            input_features: (B, T0, features) filter-bank features.
            attention_mask: (B, T0), true at the features of a clip, which come first. With `encoder_outputs` it still
                says which frames the decoder may attend to.
            decoder_input_ids: (B, U) int64.
            decoder_attention_mask: (B, past + U), true at the tokens to attend to; causal in any case. Padding tokens
                are attended to where nothing forbids it, as in transformers.
            head_mask: (encoder heads,) or (encoder layers, encoder heads), the factor of each head's attention
                weights: 0 leaves a head out.
            decoder_head_mask, cross_attn_head_mask: the same for the decoder's heads, in self- and cross-attention.
            encoder_outputs: what the encoder returned before, or a tuple (last_hidden_state, ...).
            past_key_values: the cache a former call returned; then only new tokens are given, and the encoder is not
                needed.
            decoder_inputs_embeds: (B, U, d_model) in place of the ids, scaled as the decoder scales its embeddings.
                (transformers accepts the argument and fails, as it takes positions from ids.)
            use_cache: return a cache of keys and values. By default where the configuration says so and no gradients
                are recorded, as a cache cannot hold any.
            output_attentions, output_hidden_states, return_dict: by default what the configuration says.
            cache_position: without effect, as the cache knows its length; transformers 4 has it.

        Raises:
            ValueError: ids and embeddings both or neither, no audio, or a head mask of another shape.
        """
        encoder = partial(self.encoded, input_features, attention_mask, head_mask=head_mask)
        return self.decoded(
            lambda with_states, with_weights: encoder(with_states=with_states, with_weights=with_weights),
            decoder_input_ids,
            decoder_attention_mask,
            self.with_mask(encoder_outputs, attention_mask),
            past_key_values,
            decoder_inputs_embeds,
            None,
            use_cache,
            output_attentions,
            output_hidden_states,
            return_dict,
            partial(self.decoder.steps, None, decoder_head_mask, cross_attn_head_mask),
        )

    def encoded(
        self,
        input_features: Tensor | None,
        attention_mask: Tensor | None,
        head_mask: Tensor | None = None,
        with_states: bool | None = None,
        with_weights: bool | None = None,
    ) -> BaseModelOutput:
        """What the encoder gives for the audio."""
        if input_features is None:
            raise ValueError("give input_features, or the encoder_outputs of a former call")
        return self.encoder(
            input_features,
            attention_mask,
            head_mask,
            output_attentions=with_weights,
            output_hidden_states=with_states,
            return_dict=True,
        )

    def with_mask(self, encoder_outputs: Any, attention_mask: Tensor | None) -> BaseModelOutput | None:
        """Given encoder outputs with the mask of their frames, which they may lack, by that of the features."""
        if encoder_outputs is None:
            return None
        encoded = as_encoder_output(encoder_outputs)
        if encoded.attention_mask is not None or attention_mask is None:
            return encoded
        hidden = cast(Tensor, encoded.last_hidden_state)
        valid = self.encoder.valid_frames(attention_mask, hidden.shape[1])
        return BaseModelOutput(hidden, encoded.hidden_states, encoded.attentions, valid.int())


class Speech2TextForConditionalGeneration(WithHead, GenerationMixin, Speech2TextPreTrainedModel):  # type: ignore[misc]
    """The model with its language-modelling head: audio to text."""

    generation_config_class = GenerationConfig
    padding_is_heard = True
    """The convolutions hear what a longer clip of the batch adds to a shorter one, as in transformers."""
    audio_inputs: ClassVar[tuple[str, ...]] = ("input_features", "attention_mask", "head_mask")
    tied_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.decoder.embed_tokens.weight"}

    def __init__(self, config: Speech2TextConfig) -> None:
        super().__init__(config)
        self.model = Speech2TextModel(config)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        initialise(self.lm_head, config.init_std)
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.lm_head = new_embeddings

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        head_mask: Tensor | None = None,
        decoder_head_mask: Tensor | None = None,
        cross_attn_head_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: DecoderCache | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: Tensor | None = None,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Logits of U tokens, and the loss where `labels` are given. Arguments as `Speech2TextModel.forward`, and:

        Args:
            labels: (B, U) int64, the token that follows at each place, -100 where none counts. Without decoder inputs
                these are the labels shifted right behind `config.decoder_start_token_id`. The loss is the mean
                cross-entropy over the labels that count, in float32.

        Raises:
            ValueError: as `Speech2TextModel.forward`; labels of another shape than the tokens.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.shifted(labels)
        outputs = self.model(
            input_features,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            head_mask,
            decoder_head_mask,
            cross_attn_head_mask,
            encoder_outputs,
            past_key_values,
            decoder_inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
            return_dict=True,
        )
        return self.headed(outputs, labels, None, return_dict)

    def heard(self, model_inputs: dict[str, Any]) -> BaseModelOutput:
        """As `WithHead.heard`; encoder outputs without a mask get that of the inputs."""
        given = self.model.with_mask(model_inputs.get("encoder_outputs"), model_inputs.get("attention_mask"))
        return self.encode(model_inputs) if given is None else given

    def silence(self, rows: int, seconds: float) -> dict[str, Tensor]:
        """As `GenerationMixin.silence`, in frames of 10 ms."""
        config = self.config
        return self.empty(rows, round(100 * seconds), config.input_feat_per_channel * config.input_channels)
