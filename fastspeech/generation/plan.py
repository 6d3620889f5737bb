"""One call of `generate`, worked out before anything is computed."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from .config import GenerationConfig
from .interface import LogitsRule, StoppingCriterion, Streamer
from .logits_rules import AllowedTokens, as_list, logits_rules
from .stopping import time_limit

_NOT_SERVED = {
    "stop_strings": None,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "guidance_scale": 1.0,
    "watermarking_config": None,
    "token_healing": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "prompt_lookup_num_tokens": None,
}
"""Parameters that would change the result and are not implemented, with the value under which they do nothing."""


@dataclass(frozen=True)
class Plan:
    """What the decoding loops go by.

    Attributes:
        config: all parameters, defaults filled in.
        max_length: longest sequence, prompt included.
        eos: the tokens that end a sequence.
        pad: what follows behind the end.
        rules: on the scores, in the order they apply.
        criteria: that end sequences besides eos and max_length.
        record_scores, record_logits: whether each step's are returned.
        rows_may_leave: whether ended sequences may leave the batch; not where the caller's functions or records
            know rows by their place.
    """

    config: GenerationConfig
    max_length: int
    eos: tuple[int, ...]
    pad: int
    rules: list[LogitsRule]
    criteria: list[StoppingCriterion]
    streamer: Streamer | None
    record_scores: bool
    record_logits: bool
    rows_may_leave: bool


def make_plan(
    config: GenerationConfig,
    *,
    prompt_length: int,
    positions: int | None,
    device: torch.device,
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

    Raises:
        ValueError: a parameter is out of range or not implemented, or the prompt fills the length.
    """
    for name, neutral in _NOT_SERVED.items():
        if getattr(config, name) not in (None, neutral):
            raise ValueError(f"generate does not implement {name} (={getattr(config, name)!r})")
    max_length = _max_length(config, prompt_length, positions)
    config = config.filled_from(GenerationConfig(**GenerationConfig.DEFAULTS))
    if streamer is not None and config.num_beams > 1:
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
    recorded = bool(config.return_dict_in_generate and (config.output_scores or config.output_logits))
    called_back = any((logits_processor, stopping_criteria, prefix_allowed_tokens_fn, streamer))
    criteria = list(stopping_criteria or ())
    if config.max_time is not None:
        criteria.append(time_limit(config.max_time))
    return Plan(
        config=config,
        max_length=max_length,
        eos=eos,
        pad=config.pad_token_id if config.pad_token_id is not None else (eos or (0,))[0],
        rules=rules,
        criteria=criteria,
        streamer=streamer,
        record_scores=bool(config.return_dict_in_generate and config.output_scores),
        record_logits=bool(config.return_dict_in_generate and config.output_logits),
        rows_may_leave=not (recorded or called_back),
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
