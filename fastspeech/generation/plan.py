"""One call of `generate`, worked out before anything is computed."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .config import GenerationConfig
from .interface import LogitsRule, Record, StoppingCriterion, Streamer
from .logits_rules import AllowedTokens, as_list, logits_rules
from .stopping import time_limit

_NOT_SERVED = {
    "stop_strings": None,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "token_healing": False,
    "prompt_lookup_num_tokens": None,
}
"""Parameters that would change the result and are not implemented, with the value under which they do nothing."""


@dataclass(frozen=True)
class Plan:
    """What the decoding loops go by.

    Attributes:
        max_length: longest sequence, prompt included.
        limits: longest sequence of each utterance; None where that is max_length for all.
        beams: sequences that are followed of each utterance; 1 is no beam search.
        returned: sequences that are returned of each utterance.
        do_sample, early_stopping, length_penalty: as in `GenerationConfig`.
        eos: the tokens that end a sequence.
        pad: what follows behind the end.
        rules: on the scores, in the order they apply.
        criteria: that end sequences besides eos and max_length.
        as_record: whether a record is returned, not the sequences alone.
        record_scores, record_logits, record_attentions, record_states: whether each step's are in it.
        generator: of the numbers that are drawn by; None for PyTorch's own.
        rows_may_leave: whether ended sequences may leave the batch; not where the caller's functions know rows by
            their place, nor where a record returns the scores and the cache of all of them.
    """

    max_length: int
    limits: tuple[int, ...] | None
    beams: int
    returned: int
    do_sample: bool
    early_stopping: bool | str
    length_penalty: float
    eos: tuple[int, ...]
    pad: int
    rules: list[LogitsRule]
    criteria: list[StoppingCriterion]
    streamer: Streamer | None
    as_record: bool
    record_scores: bool
    record_logits: bool
    record_attentions: bool
    record_states: bool
    rows_may_leave: bool
    generator: torch.Generator | None = None

    def record(self) -> Record | None:
        """What takes a step's attention weights and hidden states; None where neither is asked for."""
        if self.record_attentions or self.record_states:
            return Record(self.record_states, self.record_attentions)
        return None


def recorded(records: list[Record]) -> dict[str, Any]:
    """The fields of the output that the records of all steps make."""
    fields: dict[str, Any] = {}
    if records and records[0].with_weights:
        fields["decoder_attentions"] = tuple(tuple(record.attentions) for record in records)
        fields["cross_attentions"] = tuple(tuple(record.cross_attentions) for record in records)
    if records and records[0].with_states:
        fields["decoder_hidden_states"] = tuple(tuple(record.hidden_states) for record in records)
    return fields


def make_plan(
    config: GenerationConfig,
    *,
    prompt_length: int,
    positions: int | None,
    device: torch.device,
    row_limits: Sequence[int] | None = None,
    logits_processor: Iterable[LogitsRule] | None = None,
    stopping_criteria: Iterable[StoppingCriterion] | None = None,
    prefix_allowed_tokens_fn: AllowedTokens | None = None,
    streamer: Streamer | None = None,
) -> Plan:
    """The plan of a call.

    Args:
        config: parameters of the caller and the model, defaults not yet filled in.
        prompt_length: tokens of the prompt.
        positions: the longest sequence the decoder has positions for; None where there is no such limit.
        device: where the scores are.
        row_limits: most new tokens of each utterance, none above the configuration's; None where they are alike.

    Raises:
        ValueError: a parameter is out of range or not implemented, or the prompt fills the length.
    """
    for name, neutral in _NOT_SERVED.items():
        if getattr(config, name) not in (None, neutral):
            raise ValueError(f"generate does not implement {name} (={getattr(config, name)!r})")
    max_length = _max_length(config, prompt_length, positions)
    limits: tuple[int, ...] | None = None
    if row_limits is not None:
        limits = tuple(min(prompt_length + most, max_length) for most in row_limits)
        if config.forced_eos_token_id is not None:
            raise ValueError("forced_eos_token_id needs one max_new_tokens for all utterances")
    config = config.filled_from(GenerationConfig(**GenerationConfig.DEFAULTS))
    beams = config.num_beams or 1
    if streamer is not None and beams > 1:
        raise ValueError("a streamer needs num_beams=1: a beam search knows its tokens only at the end")
    eos = () if config.eos_token_id is None else tuple(as_list(config.eos_token_id))
    rules = logits_rules(
        config,
        prompt_length=prompt_length,
        max_length=max_length,
        eos=eos,
        device=device,
        allowed_tokens=prefix_allowed_tokens_fn,
        user_rules=logits_processor or (),
    )
    criteria = list(stopping_criteria or ())
    if config.max_time is not None:
        criteria.append(time_limit(config.max_time))
    as_record = bool(config.return_dict_in_generate)
    called_back = logits_processor or stopping_criteria or prefix_allowed_tokens_fn or streamer
    return Plan(
        max_length=max_length,
        limits=limits,
        beams=beams,
        returned=config.num_return_sequences or 1,
        do_sample=bool(config.do_sample),
        early_stopping=config.early_stopping or False,
        length_penalty=1.0 if config.length_penalty is None else config.length_penalty,
        eos=eos,
        pad=config.pad_token_id if config.pad_token_id is not None else (eos or (0,))[0],
        rules=rules,
        criteria=criteria,
        streamer=streamer,
        as_record=as_record,
        record_scores=as_record and bool(config.output_scores),
        record_logits=as_record and bool(config.output_logits),
        record_attentions=as_record and bool(config.output_attentions),
        record_states=as_record and bool(config.output_hidden_states),
        rows_may_leave=not (called_back or as_record),
    )


def _max_length(config: GenerationConfig, prompt_length: int, positions: int | None) -> int:
    if config.max_new_tokens is not None:
        max_length = prompt_length + config.max_new_tokens
    elif config.max_length is not None:
        max_length = config.max_length
    else:
        max_length = prompt_length + GenerationConfig.NEW_TOKENS
        warnings.warn(
            f"neither max_new_tokens nor max_length is set: at most {GenerationConfig.NEW_TOKENS} new tokens are"
            " decoded; pass max_new_tokens",
            UserWarning,
            stacklevel=4,
        )
    if positions is not None and max_length > positions:
        warnings.warn(
            f"the model has positions for {positions} tokens: a length of {max_length} is cut to that",
            UserWarning,
            stacklevel=4,
        )
        max_length = positions
    if max_length <= prompt_length:
        raise ValueError(f"the prompt has {prompt_length} tokens, and max_length={max_length} leaves room for no other")
    return max_length
