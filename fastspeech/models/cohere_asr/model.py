"""CohereAsr: a FastConformer encoder and a Transformer decoder, with the interface of transformers' page."""

from typing import Any, ClassVar

from torch import Tensor, nn

from fastspeech.checkpoints import PretrainedModel
from fastspeech.generation import DecoderCache, GenerationConfig, GenerationMixin
from fastspeech.layers.initialise import initialise
from fastspeech.layers.seq2seq import EncoderDecoder, WithHead
from fastspeech.models.cohere_asr.config import CohereAsrConfig
from fastspeech.models.cohere_asr.decoder import CohereAsrDecoder
from fastspeech.models.cohere_asr.encoder import ParakeetEncoder
from fastspeech.models.cohere_asr.keys import model_key
from fastspeech.outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput


class CohereAsrPreTrainedModel(PretrainedModel):
    """What the CohereAsr models share: loading and saving, in transformers' layout and from the released one."""

    config_class = CohereAsrConfig
    config: CohereAsrConfig
    key_map = staticmethod(model_key)


class CohereAsrModel(EncoderDecoder, CohereAsrPreTrainedModel):
    """Encoder and decoder, without the head."""

    def __init__(self, config: CohereAsrConfig) -> None:
        super().__init__(config)
        self.encoder = ParakeetEncoder(config.encoder_config)
        self.decoder = CohereAsrDecoder(config)
        initialise(self.encoder, config.encoder_config.initializer_range)
        initialise(self.decoder, config.initializer_range)

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: DecoderCache | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqModelOutput | tuple[Any, ...]:
        """Hidden states of U tokens.

        Args:
            input_features: (B, T0, mel) log-mel features.
            attention_mask: (B, T0), true at the frames of the audio.
            decoder_input_ids: (B, U) int64.
            decoder_attention_mask: (B, past + U), true at the tokens to attend to; causal in any case.
            encoder_outputs: what the encoder returned before, or a tuple (last_hidden_state, ...).
            past_key_values: the cache a former call returned; then only new tokens are given, and the encoder is not
                needed.
            decoder_inputs_embeds: (B, U, hidden) in place of the ids.
            decoder_position_ids: (B, U) or (1, U) int64; by default they count on from the cache.
            use_cache: return a cache of keys and values. By default where the configuration says so and no gradients
                are recorded, as a cache cannot hold any.
            output_attentions, output_hidden_states, return_dict: by default what the configuration says.

        Raises:
            ValueError: ids and embeddings both or neither, no audio, or more tokens than there are positions.
        """

        def encode(with_states: bool, with_weights: bool) -> BaseModelOutput:
            return self.encoded(input_features, attention_mask, with_states, with_weights)

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
        input_features: Tensor | None,
        attention_mask: Tensor | None,
        with_states: bool | None = None,
        with_weights: bool | None = None,
    ) -> BaseModelOutput:
        """What the encoder gives for the audio."""
        if input_features is None:
            raise ValueError("give input_features, or the encoder_outputs of a former call")
        return self.encoder(
            input_features,
            attention_mask,
            output_hidden_states=with_states,
            output_attentions=with_weights,
            return_dict=True,
        )


class CohereAsrForConditionalGeneration(WithHead, GenerationMixin, CohereAsrPreTrainedModel):  # type: ignore[misc]
    """The model with its language-modelling head: audio to text."""

    generation_config_class = GenerationConfig
    ignored_inputs = ("audio_chunk_index",)
    audio_inputs: ClassVar[tuple[str, ...]] = ("input_features", "attention_mask")
    tied_keys: ClassVar[dict[str, str]] = {"proj_out.weight": "model.decoder.embed_tokens.weight"}

    def __init__(self, config: CohereAsrConfig) -> None:
        super().__init__(config)
        self.model = CohereAsrModel(config)
        self.proj_out = nn.Linear(config.hidden_size, config.vocab_size)
        initialise(self.proj_out, config.initializer_range)
        self.tie_weights()
        self.decoder_positions = config.max_position_embeddings

    def forward(
        self,
        input_features: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: Any = None,
        past_key_values: DecoderCache | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        decoder_position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        num_items_in_batch: int | Tensor | None = None,
        audio_chunk_index: Any = None,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """Logits of U tokens, and the loss where `labels` are given. Arguments as `CohereAsrModel.forward`, and:

        Args:
            labels: (B, U) int64, the token that follows at each place, -100 where none counts. Without decoder inputs
                these are the labels shifted right behind `config.decoder_start_token_id`. The loss is the mean
                cross-entropy over the labels that count, in float32: label u belongs to the logits of token u.
                (transformers up to 5.6.2 shifts the labels a second time.)
            num_items_in_batch: divide the summed loss by this in place of the number of labels that count.
            audio_chunk_index: not used; the processor returns it beside the model's inputs.

        Raises:
            ValueError: as `CohereAsrModel.forward`; labels of another shape than the tokens; labels to shift without a
                decoder start or padding token in the configuration.
        """
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = self.shifted(labels)
        outputs = self.model(
            input_features,
            attention_mask,
            decoder_input_ids,
            decoder_attention_mask,
            encoder_outputs,
            past_key_values,
            decoder_inputs_embeds,
            decoder_position_ids,
            use_cache,
            output_attentions,
            output_hidden_states,
            return_dict=True,
        )
        return self.headed(outputs, labels, num_items_in_batch, return_dict)

    def encode(
        self, model_inputs: dict[str, Any], with_states: bool = False, with_weights: bool = False
    ) -> BaseModelOutput:
        """As `WithHead.encode`; padding that all clips share is left out of it."""
        features, mask = model_inputs.get("input_features"), model_inputs.get("attention_mask")
        if features is not None and mask is not None:
            # The extractor always leaves padding behind the longest clip. Without it a single clip needs no masks.
            mask = mask.cpu()  # read once for all that follows
            frames = max(1, int(mask.sum(-1).max()))
            model_inputs = {**model_inputs, "input_features": features[:, :frames], "attention_mask": mask[:, :frames]}
        return super().encode(model_inputs, with_states, with_weights)

    def silence(self, rows: int, seconds: float) -> dict[str, Tensor]:
        """As `GenerationMixin.silence`, in frames of 10 ms."""
        return self.empty(rows, round(100 * seconds), self.config.encoder_config.num_mel_bins)
