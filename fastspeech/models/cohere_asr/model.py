"""CohereAsr: a FastConformer encoder and a Transformer decoder, with the interface of transformers' page."""

from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastspeech.checkpoints import PretrainedModel
from fastspeech.generation import DecoderCache, GenerationConfig, GenerationMixin
from fastspeech.models.cohere_asr.config import CohereAsrConfig
from fastspeech.models.cohere_asr.decoder import CohereAsrDecoder, Decoding, Record
from fastspeech.models.cohere_asr.encoder import ParakeetEncoder
from fastspeech.models.cohere_asr.keys import model_key
from fastspeech.outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput


class CohereAsrPreTrainedModel(PretrainedModel):
    """What the CohereAsr models share: loading and saving, in transformers' layout and from the released one."""

    config_class = CohereAsrConfig
    config: CohereAsrConfig
    key_map = staticmethod(model_key)


class CohereAsrModel(CohereAsrPreTrainedModel):
    """Encoder and decoder, without the head."""

    def __init__(self, config: CohereAsrConfig) -> None:
        super().__init__(config)
        self.encoder = ParakeetEncoder(config.encoder_config)
        self.decoder = CohereAsrDecoder(config)

    def get_input_embeddings(self) -> nn.Module:
        return self.decoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.decoder.embed_tokens = value

    def freeze_encoder(self) -> None:
        """Keep the encoder's parameters out of training."""
        self.encoder.requires_grad_(False)

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
        config, decoder = self.config, self.decoder
        if (decoder_input_ids is None) == (decoder_inputs_embeds is None):
            raise ValueError("give either decoder_input_ids or decoder_inputs_embeds")
        with_weights = config.output_attentions if output_attentions is None else output_attentions
        with_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        use_cache = config.use_cache and not torch.is_grad_enabled() if use_cache is None else use_cache

        cache = past_key_values
        if cache is not None:
            encoded = _as_output(encoder_outputs) if encoder_outputs is not None else BaseModelOutput()
            cross = cache.cross_keys, cache.cross_values, cache.cross_lengths
        else:
            encoded = self.encoded(input_features, attention_mask, encoder_outputs, with_states, with_weights)
            keys, values = decoder.cross_keys_values(cast(Tensor, encoded.last_hidden_state))
            cross = tuple(keys), tuple(values), valid_lengths(encoded)
            if use_cache:
                cache = DecoderCache(keys, values, _FIRST_CAPACITY, cross_lengths=cross[2])

        x = decoder.embed_tokens(decoder_input_ids) if decoder_inputs_embeds is None else decoder_inputs_embeds
        if decoder_position_ids is None:
            x = x + decoder.positions(0 if cache is None else cache.length, x.shape[1])
        else:
            x = x + decoder.pos_emb(decoder_position_ids)
        record = Record(with_states, with_weights)
        last = decoder.run(decoder.steps(), x, *cross, decoder_attention_mask, cache, record)
        output = Seq2SeqModelOutput(
            last_hidden_state=last,
            past_key_values=cache if use_cache else None,
            decoder_hidden_states=tuple(record.hidden_states) if with_states else None,
            decoder_attentions=tuple(record.attentions) if with_weights else None,
            cross_attentions=tuple(record.cross_attentions) if with_weights else None,
            encoder_last_hidden_state=encoded.last_hidden_state,
            encoder_hidden_states=encoded.hidden_states,
            encoder_attentions=encoded.attentions,
        )
        return_dict = config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def encoded(
        self,
        input_features: Tensor | None,
        attention_mask: Tensor | None,
        encoder_outputs: Any,
        with_states: bool | None = None,
        with_weights: bool | None = None,
    ) -> BaseModelOutput:
        """What the encoder gives for the audio, or gave before: then `encoder_outputs`."""
        if encoder_outputs is not None:
            return _as_output(encoder_outputs)
        if input_features is None:
            raise ValueError("give input_features, or the encoder_outputs of a former call")
        return self.encoder(
            input_features,
            attention_mask,
            output_hidden_states=with_states,
            output_attentions=with_weights,
            return_dict=True,
        )


_FIRST_CAPACITY = 64
"""Tokens that the cache `forward` returns has memory for at first."""


def _as_output(encoder_outputs: Any) -> BaseModelOutput:
    """Encoder outputs as a record: given as one, as a tuple, or as transformers' record."""
    if isinstance(encoder_outputs, BaseModelOutput):
        return encoder_outputs
    if isinstance(encoder_outputs, (tuple, list)):
        return BaseModelOutput(*encoder_outputs[:3])
    return BaseModelOutput(
        encoder_outputs.last_hidden_state, attention_mask=getattr(encoder_outputs, "attention_mask", None)
    )


def valid_lengths(encoded: BaseModelOutput) -> Tensor | None:
    """(B,) int64 valid encoder frames; None where all are, which on a GPU is not asked."""
    mask = encoded.attention_mask
    if mask is None or (mask.device.type == "cpu" and bool(mask.all())):
        return None
    return mask.sum(-1)


class CohereAsrForConditionalGeneration(GenerationMixin, CohereAsrPreTrainedModel):  # type: ignore[misc]
    """The model with its language-modelling head: audio to text."""

    generation_config_class = GenerationConfig
    ignored_inputs = ("audio_chunk_index",)
    tied_keys: ClassVar[dict[str, str]] = {"proj_out.weight": "model.decoder.embed_tokens.weight"}

    def __init__(self, config: CohereAsrConfig) -> None:
        super().__init__(config)
        self.model = CohereAsrModel(config)
        self.proj_out = nn.Linear(config.hidden_size, config.vocab_size)
        self.tie_weights()
        self.decoder_positions = config.max_position_embeddings

    def get_encoder(self) -> ParakeetEncoder:
        return self.model.encoder

    def get_decoder(self) -> CohereAsrDecoder:
        return self.model.decoder

    def get_output_embeddings(self) -> nn.Module:
        return self.proj_out

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.proj_out = new_embeddings

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.set_input_embeddings(value)

    def freeze_encoder(self) -> None:
        """Keep the encoder's parameters out of training."""
        self.model.freeze_encoder()

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
        config = self.config
        if labels is not None and decoder_input_ids is None and decoder_inputs_embeds is None:
            decoder_input_ids = shift_tokens_right(labels, config.pad_token_id, config.decoder_start_token_id)
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
        logits = self.proj_out(outputs.last_hidden_state)
        loss = None if labels is None else sequence_loss(logits, labels, num_items_in_batch)
        output = Seq2SeqLMOutput(
            loss=loss, logits=logits, **{name: value for name, value in outputs.items() if name != "last_hidden_state"}
        )
        return_dict = config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    @torch.no_grad()
    def start_decoding(self, model_inputs: dict[str, Any], rows_per_input: int, capacity: int) -> Decoding:
        """Encode the audio and hoist all that decoding needs of it (see `generation.interface.StepModel`)."""
        features, mask = model_inputs.get("input_features"), model_inputs.get("attention_mask")
        if features is not None and mask is not None:
            # The extractor always leaves padding behind the longest clip. Without it a single clip needs no masks.
            frames = max(1, int(mask.sum(-1).max()))
            features, mask = features[:, :frames], mask[:, :frames]
        encoded = self.model.encoded(features, mask, model_inputs.get("encoder_outputs"))
        hidden, lengths = cast(Tensor, encoded.last_hidden_state), None
        if encoded.attention_mask is not None:
            lengths = encoded.attention_mask.sum(-1)
            hidden = hidden[:, : max(1, int(lengths.max()))]
            lengths = None if bool((lengths == hidden.shape[1]).all()) else lengths
        keys, values = self.model.decoder.cross_keys_values(hidden)
        steps = self.model.decoder.steps()
        return Decoding(steps, keys, values, capacity, rows_per_input=rows_per_input, cross_lengths=lengths)

    @torch.no_grad()
    def decode(self, input_ids: Tensor, cache: Decoding) -> Tensor:
        """Logits (rows, vocabulary) after the last of the tokens input_ids (rows, n)."""
        decoder = self.model.decoder
        x = decoder.embed_tokens(input_ids) + decoder.positions(cache.length, input_ids.shape[1])
        last = decoder.run(cache.steps, x, cache.cross_keys, cache.cross_values, cache.cross_lengths, cache=cache)
        return self.proj_out(last[:, -1])


def shift_tokens_right(labels: Tensor, pad_token_id: int | None, decoder_start_token_id: int | None) -> Tensor:
    """The decoder's input for `labels` (B, U): the start token, then all labels but the last, padding for -100."""
    if pad_token_id is None or decoder_start_token_id is None:
        raise ValueError("labels need config.pad_token_id and config.decoder_start_token_id, or decoder_input_ids")
    shifted = F.pad(labels[:, :-1], (1, 0), value=decoder_start_token_id)
    return shifted.masked_fill(shifted == -100, pad_token_id)


def sequence_loss(logits: Tensor, labels: Tensor, count: int | Tensor | None = None) -> Tensor:
    """Cross-entropy of logits (B, U, V) against labels (B, U), -100 left out: the mean, or the sum over `count`."""
    if labels.shape != logits.shape[:2]:
        raise ValueError(
            f"labels {tuple(labels.shape)} and decoder inputs {tuple(logits.shape[:2])} must agree; "
            "leave the decoder inputs out to have them made of the labels"
        )
    reduction = "mean" if count is None else "sum"
    loss = F.cross_entropy(logits.float().flatten(0, 1), labels.to(logits.device).flatten(), reduction=reduction)
    return loss if count is None else loss / count
