"""What models and `generate` return: records read by attribute, by name or by position.

    output.logits, output["logits"], output[0], loss, logits = output.to_tuple()

A field that is None counts as absent: it has no name and no position.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch

Tensors = tuple[torch.Tensor, ...]


@dataclass(eq=False)
class ModelOutput(Mapping):
    """Base of all output records; a mapping from the names of the fields that are set to their values, in order."""

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        value = getattr(self, key, None) if key in self.__dataclass_fields__ else None
        if value is None:
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self) if getattr(self, field.name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def to_tuple(self) -> tuple[Any, ...]:
        """The values of the fields that are set, in order."""
        return tuple(self[name] for name in self)


@dataclass(eq=False)
class BaseModelOutput(ModelOutput):
    """What an encoder returns.

    last_hidden_state (B, T, D); hidden_states: one (B, T, D) for the input and one a layer; attentions: one
    (B, H, T, T) a layer; attention_mask (B, T): the frames that are valid, where the encoder changes the length.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    attention_mask: torch.Tensor | None = None


@dataclass(eq=False)
class BaseModelOutputWithPast(ModelOutput):
    """What a decoder without its head returns.

    last_hidden_state (B, T, D); past_key_values: its cache; hidden_states: one (B, T, D) for the input and one a layer,
    the last of them normalised; attentions: one (B, H, T, tokens) a layer.
    """

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Any = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class CausalLMOutputWithPast(ModelOutput):
    """What a decoder with its head returns: loss () where labels are given, logits (B, T, V), and the rest as in
    `BaseModelOutputWithPast`."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Any = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False)
class Seq2SeqModelOutput(ModelOutput):
    """What an encoder-decoder without its head returns.

    last_hidden_state (B, U, D) of the decoder for U tokens; past_key_values: the decoder's cache; decoder_attentions
    one (B, H, U, U) a layer; cross_attentions one (B, H, U, T) a layer; encoder_* as in `BaseModelOutput`.
    """

    last_hidden_state: torch.Tensor | None = None
    past_key_values: Any = None
    decoder_hidden_states: Tensors | None = None
    decoder_attentions: Tensors | None = None
    cross_attentions: Tensors | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: Tensors | None = None
    encoder_attentions: Tensors | None = None


@dataclass(eq=False)
class Seq2SeqLMOutput(ModelOutput):
    """What an encoder-decoder with its head returns: loss () where labels are given, logits (B, U, V), and the rest as
    in `Seq2SeqModelOutput`."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Any = None
    decoder_hidden_states: Tensors | None = None
    decoder_attentions: Tensors | None = None
    cross_attentions: Tensors | None = None
    encoder_last_hidden_state: torch.Tensor | None = None
    encoder_hidden_states: Tensors | None = None
    encoder_attentions: Tensors | None = None


@dataclass(eq=False)
class GenerateEncoderDecoderOutput(ModelOutput):
    """What greedy search and sampling return, with R = B * num_return_sequences rows.

    sequences (R, length) int64, prompt included; scores: one (R, V) float32 a new token, after the rules (with
    output_scores); logits: the same before them (with output_logits); encoder_*: as in `BaseModelOutput`, of B rows;
    decoder_attentions, cross_attentions, decoder_hidden_states: for each step what `Seq2SeqModelOutput` has (with
    output_attentions, output_hidden_states); past_key_values: the decoder's cache; target_passes: with an
    assistant_model, the passes of the model itself, of which there is one a token without.
    """

    sequences: torch.Tensor
    scores: Tensors | None = None
    logits: Tensors | None = None
    encoder_attentions: Tensors | None = None
    encoder_hidden_states: Tensors | None = None
    decoder_attentions: tuple[Tensors, ...] | None = None
    cross_attentions: tuple[Tensors, ...] | None = None
    decoder_hidden_states: tuple[Tensors, ...] | None = None
    past_key_values: Any = None
    target_passes: int | None = None


@dataclass(eq=False)
class GenerateDecoderOnlyOutput(ModelOutput):
    """What greedy search and sampling return of a decoder without encoder: the fields of
    `GenerateEncoderDecoderOutput` that it has, `hidden_states` being the decoder's."""

    sequences: torch.Tensor
    scores: Tensors | None = None
    logits: Tensors | None = None
    attentions: tuple[Tensors, ...] | None = None
    hidden_states: tuple[Tensors, ...] | None = None
    past_key_values: Any = None


@dataclass(eq=False)
class GenerateBeamEncoderDecoderOutput(ModelOutput):
    """What beam search with K beams returns, with R = B * num_return_sequences rows, best first for each input.

    sequences (R, length) int64, prompt included; sequences_scores (R,) float32: the sum of log-probabilities over
    length ** length_penalty (with output_scores); scores: one (B * K, V) float32 a step, log-probabilities after the
    rules (with output_scores); logits: one (B * K, V) a step (with output_logits); beam_indices (R, new tokens) int64:
    the row of `scores` each token came from, -1 behind the end; the rest as in `GenerateEncoderDecoderOutput`, with the
    decoder's of B * K rows.
    """

    sequences: torch.Tensor
    sequences_scores: torch.Tensor | None = None
    scores: Tensors | None = None
    logits: Tensors | None = None
    beam_indices: torch.Tensor | None = None
    encoder_attentions: Tensors | None = None
    encoder_hidden_states: Tensors | None = None
    decoder_attentions: tuple[Tensors, ...] | None = None
    cross_attentions: tuple[Tensors, ...] | None = None
    decoder_hidden_states: tuple[Tensors, ...] | None = None
    past_key_values: Any = None


# What an exported encoder gives back.
torch.export.register_dataclass(BaseModelOutput, serialized_type_name="fastspeech.outputs.BaseModelOutput")
