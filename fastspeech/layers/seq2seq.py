"""What encoder-decoder models share around their encoder and decoder: records, the loss, the step interface."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastspeech.generation.cache import DecoderCache
from fastspeech.generation.interface import Record
from fastspeech.generation.plan import Plan
from fastspeech.layers.decoder import Decoder, Decoding, Step
from fastspeech.layers.linear import direct
from fastspeech.layers.padding import readable
from fastspeech.layers.relaid import Map, Product
from fastspeech.layers.searched import PagedBatch
from fastspeech.outputs import BaseModelOutput, Seq2SeqLMOutput, Seq2SeqModelOutput

_FIRST_CAPACITY = 64
"""Tokens that the cache `forward` returns has memory for at first."""


class EncoderDecoder:
    """Adds to a model without head what follows from its `encoder` and `decoder`."""

    config: Any
    encoder: nn.Module
    decoder: Decoder

    def get_encoder(self) -> nn.Module:
        return self.encoder

    def get_decoder(self) -> nn.Module:
        return self.decoder

    def get_input_embeddings(self) -> nn.Module:
        return cast(nn.Module, self.decoder.embed_tokens)

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.decoder.embed_tokens = value

    def freeze_encoder(self) -> None:
        """Keep the encoder's parameters out of training."""
        self.encoder.requires_grad_(False)

    def decoded(
        self,
        encode: Callable[[bool, bool], BaseModelOutput],
        decoder_input_ids: Tensor | None,
        decoder_attention_mask: Tensor | None,
        encoder_outputs: Any,
        past_key_values: DecoderCache | None,
        decoder_inputs_embeds: Tensor | None,
        decoder_position_ids: Tensor | None,
        use_cache: bool | None,
        output_attentions: bool | None,
        output_hidden_states: bool | None,
        return_dict: bool | None,
        steps: Callable[[], list[Step]] | None = None,
    ) -> Seq2SeqModelOutput | tuple[Any, ...]:
        """What `forward` returns, by its arguments; `encode`, called with whether hidden states and attention weights
        are wanted, gives the encoder's output where there is none yet; `steps` in place of `decoder.steps`."""
        config, decoder = self.config, self.decoder
        if (decoder_input_ids is None) == (decoder_inputs_embeds is None):
            raise ValueError("give either decoder_input_ids or decoder_inputs_embeds")
        with_weights = config.output_attentions if output_attentions is None else output_attentions
        with_states = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        use_cache = config.use_cache and not torch.is_grad_enabled() if use_cache is None else use_cache

        encoded = None if encoder_outputs is None else as_encoder_output(encoder_outputs)
        cache = past_key_values
        cross: tuple[Sequence[Tensor], Sequence[Tensor], Tensor | None]
        if cache is not None:
            encoded = BaseModelOutput() if encoded is None else encoded
            cross = cache.cross_keys, cache.cross_values, cache.cross_lengths
        else:
            encoded = encode(with_states, with_weights) if encoded is None else encoded
            keys, values = decoder.cross_keys_values(cast(Tensor, encoded.last_hidden_state))
            cross = tuple(keys), tuple(values), valid_lengths(encoded)
            if use_cache:
                cache = DecoderCache(keys, values, _FIRST_CAPACITY, cross_lengths=cross[2])

        record = Record(with_states, with_weights)
        last = decoder.run(
            (steps or decoder.steps)(),
            decoder_input_ids,
            *cross,
            inputs_embeds=decoder_inputs_embeds,
            position_ids=decoder_position_ids,
            token_mask=decoder_attention_mask,
            cache=cache,
            record=record,
        )
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


class WithHead:
    """Adds to an `EncoderDecoder` called `model` and its head `proj_out` the loss and the step interface."""

    config: Any
    model: Any
    proj_out: nn.Module
    audio_inputs: ClassVar[tuple[str, ...]]
    """The audio, its mask, and what else `encoded` of the model takes before what is to be recorded."""

    def get_encoder(self) -> nn.Module:
        return self.model.encoder

    def get_decoder(self) -> nn.Module:
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

    def shifted(self, labels: Tensor) -> Tensor:
        """The decoder's input for `labels`."""
        return shift_tokens_right(labels, self.config.pad_token_id, self.config.decoder_start_token_id)

    def headed(
        self,
        outputs: Seq2SeqModelOutput,
        labels: Tensor | None,
        num_items_in_batch: int | Tensor | None,
        return_dict: bool | None,
    ) -> Seq2SeqLMOutput | tuple[Any, ...]:
        """What `forward` returns for the outputs of the model below."""
        logits = self.get_output_embeddings()(outputs.last_hidden_state)
        loss = None if labels is None else sequence_loss(logits, labels, num_items_in_batch)
        output = Seq2SeqLMOutput(
            loss=loss, logits=logits, **{name: value for name, value in outputs.items() if name != "last_hidden_state"}
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

    def hoisted(self, encoded: BaseModelOutput, rows_per_input: int, capacity: int) -> Decoding:
        """The cache to decode with: all that decoding needs of the encoder's output, frames no row has left out."""
        hidden, lengths = heard_frames(encoded)
        keys, values = self.model.decoder.cross_keys_values(hidden)
        steps, head = self.functions(self.model.decoder.product(rows_per_input * len(hidden)))
        return Decoding(steps, head, keys, values, capacity, rows_per_input=rows_per_input, cross_lengths=lengths)

    def encode(
        self, model_inputs: dict[str, Any], with_states: bool = False, with_weights: bool = False
    ) -> BaseModelOutput:
        """What the encoder gives for the audio. On a GPU few frames are recorded (see `RecordedEncoder`); more are
        packed where that pays (see `packing`), for which the host reads the mask."""
        audio, mask, *rest = [model_inputs.get(name) for name in self.audio_inputs]
        encoder = self.model.encoder
        recorded = getattr(encoder, "recorded", None)
        if with_states or with_weights or torch.is_grad_enabled():
            return self.model.encoded(audio, mask, *rest, with_states, with_weights)

        def eager() -> BaseModelOutput:
            return self.model.encoded(audio, None if mask is None else mask.cpu(), *rest, False, False)

        return eager() if recorded is None else recorded.encode(encoder, eager, audio, mask, *rest)

    def heard(self, model_inputs: dict[str, Any]) -> BaseModelOutput:
        """The encoder's output, that which was given or its own."""
        given = model_inputs.get("encoder_outputs")
        return self.encode(model_inputs) if given is None else as_encoder_output(given)

    @torch.no_grad()
    def start_decoding(self, model_inputs: dict[str, Any], rows_per_input: int, capacity: int) -> Decoding:
        """Encode the audio and hoist all that decoding needs of it (see `generation.interface.StepModel`)."""
        return self.hoisted(self.heard(model_inputs), rows_per_input, capacity)

    @torch.no_grad()
    def start_on_pages(self, model_inputs: dict[str, Any], rows_per_input: int, capacity: int) -> PagedBatch:
        """As `start_decoding`, over pages of the decoder, which are given back when the cache is freed."""
        hidden, lengths = heard_frames(self.heard(model_inputs))
        return self.model.decoder.searched.begin(self, hidden, lengths, rows_per_input, capacity)

    @torch.no_grad()
    def write(self, model_inputs: dict[str, Any], prompt: Tensor, plan: Plan) -> Tensor:
        """The sequences (B, length) int64 that `generate` returns for a plan that it `sits` for."""
        hidden, lengths = heard_frames(self.heard(model_inputs))
        return self.model.decoder.seated.write(self, hidden, lengths, prompt, plan)

    @torch.no_grad()
    def record_steps(self, inputs: dict[str, Tensor], max_new_tokens: int | None) -> None:
        """As `GenerationMixin.record_steps`."""
        given = {} if max_new_tokens is None else {"max_new_tokens": max_new_tokens}
        model = cast(Any, self)
        _, model_inputs, prompt, plan = model.planned(**inputs, num_beams=1, **given)
        if not model.records(prompt.device):
            return
        heard = {"encoder_outputs": self.heard(model_inputs)}
        if model.sits(plan, prompt.device):
            hidden, lengths = heard_frames(heard["encoder_outputs"])
            self.model.decoder.seated.prepare(self, hidden, lengths, prompt, plan)
        own = model.planned(**inputs, **given)[3]
        if not (model.sits(own, prompt.device) or own.as_record):
            cache = self.start_on_pages(heard, max(own.beams, own.returned), own.max_length - 1)
            try:
                cache.record()
            finally:
                cache.free()

    def empty(self, rows: int, *shape: int) -> dict[str, Tensor]:
        """Inputs of zeros, (rows, *shape), of which nothing is padding."""
        model = cast(Any, self)
        audio = torch.zeros(rows, *shape, dtype=model.dtype, device=model.device)
        return {model.main_input_name: audio, "attention_mask": audio.new_ones(audio.shape[:2], dtype=torch.int64)}

    def decode_in_int8(self, enable: bool = True) -> Self:
        """Decode with weights of eight bits in the decoder's linear maps and the head, or no longer.

        A step for a few rows takes as long as its weights take to be read, and these are a quarter of float32's: they
        are derived from the parameters (each output's are integers times one scale), which stay as they are, as do
        `state_dict` and what is saved. `generate` and an engine that is made afterwards decode with them; the encoder,
        `forward` and gradients have nothing to do with it.

        On a CPU it pays for up to about 4 rows; for more than 8 float32 is faster. On a GPU it serves wherever PyTorch
        has a kernel, as 2.13 has, but do not expect it to pay: that kernel has each thread read a row of weights by
        itself, and by a public measurement takes an H20 89 us for one row and 4096 x 4096 weights, which are read in
        bfloat16 in about 10. It has not run on a GPU here.

        That costs accuracy: of small models with random weights logits moved by 0.9 percent (CohereAsr), 3.1
        (Moonshine) and 1.0 (Speech2Text), of root mean squares, and 98, 97 and 99 of 100 best tokens stayed the best;
        the demo checkpoint's sample keeps its text. That is on a CPU, where activations are bfloat16 in these products;
        on a GPU they are multiplied in float32.

        Raises:
            ValueError: the model is on another device, or PyTorch has no such product there.
        """
        self.model.decoder.decode_in_int8(enable)
        return self

    def functions(self, product: Product | None = None) -> tuple[list[Step], Map]:
        """The decoder's layers and the head as functions of their present parameters (see `Decoder.steps`)."""
        return self.model.decoder.steps(product), (product or direct)(self.get_output_embeddings())

    def lasting_functions(self, rows: int) -> tuple[list[Step], Map]:
        """As `functions`, for about so many rows, to be kept as long as `decoding_parameters` are what they are: all
        that decoding needs of these is where it stays."""
        self.model.decoder.cross_function()  # moves parameters, as the other functions do
        return self.functions(self.model.decoder.product(rows))

    def decoding_parameters(self) -> list[Tensor]:
        """The parameters of the decoder and of the head."""
        return [*self.model.decoder.parameters(), *self.get_output_embeddings().parameters()]

    @torch.no_grad()
    def decode(
        self, input_ids: Tensor, cache: DecoderCache | PagedBatch, record: Record | None = None, every: bool = False
    ) -> Tensor:
        """Logits (rows, vocabulary) after the last of the tokens input_ids (rows, n), or after every one of them; over
        pages after the last, and nothing is recorded.

        A cache that `forward` returned may be continued; it does not hold the functions, which then are made each time,
        as they are for a graph that is traced.
        """
        if isinstance(cache, PagedBatch):
            return cache.read(input_ids)
        if isinstance(cache, Decoding) and not torch.compiler.is_compiling():
            steps, head = cache.steps, cache.head
        else:
            steps, head = self.functions()
        cross = cache.cross_keys, cache.cross_values, cache.cross_lengths
        hidden = self.model.decoder.run(steps, input_ids, *cross, cache=cache, record=record)
        return head(hidden if every else hidden[:, -1])


def as_encoder_output(encoder_outputs: Any) -> BaseModelOutput:
    """Encoder outputs as a record: given as one, as a tuple, or as transformers' record."""
    if isinstance(encoder_outputs, BaseModelOutput):
        return encoder_outputs
    if isinstance(encoder_outputs, (tuple, list)):
        return BaseModelOutput(*encoder_outputs[:3])
    return BaseModelOutput(
        encoder_outputs.last_hidden_state, attention_mask=getattr(encoder_outputs, "attention_mask", None)
    )


def heard_frames(encoded: BaseModelOutput) -> tuple[Tensor, Tensor | None]:
    """The frames (B, frames, width) without those that no row has, and how many of them each has, (B,) int64; None
    where all are."""
    hidden = cast(Tensor, encoded.last_hidden_state)
    if encoded.attention_mask is None:
        return hidden, None
    lengths = encoded.attention_mask.sum(-1)
    hidden = hidden[:, : max(1, int(lengths.max()))]
    return hidden, None if bool((lengths == hidden.shape[1]).all()) else lengths


def valid_lengths(encoded: BaseModelOutput) -> Tensor | None:
    """(B,) int64 valid encoder frames; None where all are, which is asked only where it costs nothing."""
    mask = encoded.attention_mask
    if mask is None or (readable(mask) and bool(mask.all())):
        return None
    return mask.sum(-1)


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
