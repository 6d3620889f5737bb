"""Rules on the next token: what may be said, and what is made more or less likely.

Meanings and their order are those of transformers' logits processors.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from .config import GenerationConfig
from .interface import LogitsRule
from .warpers import warpers

AllowedTokens = Callable[[int, torch.Tensor], Iterable[int]]


def logits_rules(
    config: GenerationConfig,
    *,
    prompt_length: int,
    max_length: int,
    eos: tuple[int, ...],
    device: torch.device,
    allowed_tokens: AllowedTokens | None = None,
    user_rules: Iterable[LogitsRule] = (),
) -> list[LogitsRule]:
    """The rules a resolved configuration asks for, in the order they apply.

    Args:
        config: parameters with defaults filled in.
        prompt_length: tokens of the prompt.
        max_length: longest sequence, prompt included.
        eos: the tokens that end a sequence.
        device: where the scores are.
        allowed_tokens: `prefix_allowed_tokens_fn`: (utterance, its tokens so far) to the tokens that may follow.
        user_rules: further rules, which apply after those of the configuration and before the sampling ones.

    Raises:
        ValueError: a parameter is out of its range.
    """

    def ids(tokens: int | Sequence[int]) -> torch.Tensor:
        return torch.tensor(as_list(tokens), dtype=torch.int64, device=device)

    rules: list[LogitsRule] = []
    if config.sequence_bias is not None:
        rules.append(sequence_bias(_bias_pairs(config.sequence_bias), device))
    if config.repetition_penalty not in (None, 1.0):
        rules.append(repetition_penalty(config.repetition_penalty))
    if config.no_repeat_ngram_size:
        rules.append(no_repeat_ngrams(config.no_repeat_ngram_size))
    if config.bad_words_ids is not None:
        ends = [[token] for token in eos]
        words = [word for word in config.bad_words_ids if list(word) not in ends]
        rules.append(sequence_bias([(word, -math.inf) for word in words], device))
    min_length = config.min_length or 0
    if config.min_new_tokens is not None:
        min_length = prompt_length + config.min_new_tokens
    if eos and min_length > prompt_length:
        rules.append(suppress_until(min_length, ids(eos)))
    if allowed_tokens is not None:
        rules.append(allow_only(allowed_tokens, config.num_beams or 1))
    if config.forced_bos_token_id is not None:
        rules.append(force_at(1, ids(config.forced_bos_token_id)))
    if config.forced_eos_token_id is not None:
        rules.append(force_at(max_length - 1, ids(config.forced_eos_token_id)))
    if config.remove_invalid_values:
        rules.append(remove_invalid)
    if config.exponential_decay_length_penalty is not None:
        start, factor = config.exponential_decay_length_penalty
        rules.append(favour_end(prompt_length + start, factor, ids(eos)))
    if config.suppress_tokens is not None:
        rules.append(suppress_until(math.inf, ids(config.suppress_tokens)))
    if config.begin_suppress_tokens is not None:
        # A forced first token does not count as the beginning.
        begin = prompt_length + (prompt_length == 1 and config.forced_bos_token_id is not None)
        rules.append(suppress_at(begin, ids(config.begin_suppress_tokens)))
    rules.extend(user_rules)
    if config.do_sample:
        rules.extend(warpers(config, keep=len(eos) + 1 if (config.num_beams or 1) > 1 else 1))
    if config.renormalize_logits:
        rules.append(lambda ids, scores: scores.log_softmax(-1))
    return rules


class RuleList(list[LogitsRule]):
    """Rules that are called one after the other."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The scores (rows, vocabulary) after all of them."""
        for rule in self:
            scores = rule(input_ids, scores)
        return scores


def as_list(tokens: int | Sequence[int]) -> list[int]:
    """One token id or several, as a list."""
    return [tokens] if isinstance(tokens, int) else list(tokens)


def sequence_bias(pairs: Sequence[tuple[Sequence[int], float]], device: torch.device) -> LogitsRule:
    """Add a bias to the score of the last token of a sequence wherever its other tokens have just been said."""
    if not pairs or any(not tokens or min(tokens) < 0 for tokens, _ in pairs):
        raise ValueError("sequence_bias and bad_words_ids need one sequence or more, each of token ids that are >= 0")
    by_length: dict[int, list[tuple[Sequence[int], float]]] = {}
    for tokens, bias in pairs:
        by_length.setdefault(len(tokens), []).append((tokens, bias))
    tables = [
        (
            torch.tensor([list(tokens) for tokens, _ in group], dtype=torch.int64, device=device),
            torch.tensor([bias for _, bias in group], dtype=torch.float32, device=device),
        )
        for group in by_length.values()
    ]

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        total = torch.zeros_like(scores)
        for sequences, biases in tables:
            before = sequences.shape[1] - 1
            if before <= ids.shape[1]:
                said = (ids[:, None, ids.shape[1] - before :] == sequences[:, :before]).all(-1)
                total.index_add_(1, sequences[:, before], torch.where(said, biases, 0.0))
        return scores.add_(total)

    return rule


def repetition_penalty(penalty: float) -> LogitsRule:
    """Divide the positive scores of tokens already said, prompt included, by `penalty`; multiply the negative ones."""
    if not penalty > 0:
        raise ValueError(f"repetition_penalty must be above 0, got {penalty}")

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # What a text begins with may be no token that has a score; it gets one of its own, which is dropped.
        wide, ids = torch.nn.functional.pad(scores, (0, 1)), ids.clamp(max=scores.shape[1])
        said = wide.gather(1, ids)
        return wide.scatter_(1, ids, torch.where(said < 0, said * penalty, said / penalty))[:, :-1]

    return rule


def no_repeat_ngrams(size: int) -> LogitsRule:
    """Forbid every token that would complete a run of `size` tokens that has been said before, prompt included."""

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] < size:
            return scores
        runs = ids.unfold(1, size, 1)
        again = (runs[..., :-1] == ids[:, None, ids.shape[1] - size + 1 :]).all(-1)
        # A reduction, for the same token may end one run that repeats and one that does not.
        return scores.scatter_reduce_(1, runs[..., -1], torch.where(again, -math.inf, math.inf), "amin")

    return rule


def suppress_until(length: float, tokens: torch.Tensor) -> LogitsRule:
    """Forbid `tokens` in sequences shorter than `length`."""

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] < length:
            scores.index_fill_(1, tokens, -math.inf)
        return scores

    return rule


def suppress_at(length: int, tokens: torch.Tensor) -> LogitsRule:
    """Forbid `tokens` as the one that follows `length` others."""

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] == length:
            scores.index_fill_(1, tokens, -math.inf)
        return scores

    return rule


def force_at(length: int, tokens: torch.Tensor) -> LogitsRule:
    """Allow only `tokens`, each with score 0, as the one that follows `length` others."""

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] == length:
            scores.fill_(-math.inf).index_fill_(1, tokens, 0.0)
        return scores

    return rule


def allow_only(allowed_tokens: AllowedTokens, beams: int) -> LogitsRule:
    """Allow only the tokens a function names for each row.

    Where other rules leave none of them to any beam of an utterance, they are allowed all the same, each with score 0.
    """

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        mask = torch.full_like(scores, -math.inf)
        for row, tokens in enumerate(ids):
            allowed = list(allowed_tokens(row // beams, tokens))
            if not allowed:
                raise ValueError(f"prefix_allowed_tokens_fn allows no token for utterance {row // beams}")
            mask[row, allowed] = 0.0
        allowed_scores = scores + mask
        nothing_left = allowed_scores.amax(-1).isneginf().view(-1, beams).all(1).repeat_interleave(beams)
        return torch.where(nothing_left[:, None], mask, allowed_scores)

    return rule


def remove_invalid(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Replace NaN by 0 and infinities by the largest finite numbers."""
    return scores.nan_to_num_(nan=0.0)


def favour_end(start: int, factor: float, eos: torch.Tensor) -> LogitsRule:
    """From length `start` on, raise the scores s of the end tokens by |s| * (factor ** (length - start) - 1)."""

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] > start:
            ends = scores[:, eos]
            raised = ends + ends.abs() * (factor ** (ids.shape[1] - start) - 1)
            scores[:, eos] = torch.where(ends.isfinite(), raised, ends)
        return scores

    return rule


def _bias_pairs(bias: dict[tuple[int, ...], float] | list[list[Any]]) -> list[tuple[Sequence[int], float]]:
    pairs = bias.items() if isinstance(bias, dict) else bias
    return [(list(tokens), float(value)) for tokens, value in pairs]
