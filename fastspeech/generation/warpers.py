"""The rules of sampling: which tokens may be drawn, and how evenly.

Each keeps at least `keep` tokens, so that a beam search that draws can go on where
tokens that end the sequence are drawn.
"""

import math

import torch

from .config import GenerationConfig
from .interface import LogitsRule


def warpers(config: GenerationConfig, keep: int) -> list[LogitsRule]:
    """The sampling rules a resolved configuration asks for, in the order they apply.

    Raises:
        ValueError: a parameter is out of its range.
    """
    rules: list[LogitsRule] = []
    if config.temperature not in (None, 1.0):
        rules.append(temperature(config.temperature))
    if config.top_h is not None:
        rules.append(top_h(config.top_h))
    if config.top_k:
        rules.append(top_k(config.top_k, keep))
    if config.top_p is not None and config.top_p < 1.0:
        rules.append(top_p(config.top_p, keep))
    if config.min_p is not None:
        rules.append(min_p(config.min_p, keep))
    if config.typical_p is not None and config.typical_p < 1.0:
        rules.append(typical_p(config.typical_p, keep))
    if config.epsilon_cutoff:
        rules.append(epsilon_cutoff(config.epsilon_cutoff, keep))
    if config.eta_cutoff:
        rules.append(eta_cutoff(config.eta_cutoff, keep))
    return rules


def temperature(value: float) -> LogitsRule:
    """Divide the scores by `value`."""
    if not value > 0:
        raise ValueError(f"temperature must be above 0, got {value}; for greedy search set do_sample=False")
    return lambda ids, scores: scores.div_(value)


def top_k(count: int, keep: int) -> LogitsRule:
    """Keep the `count` likeliest tokens, and those as likely as the last of them."""
    if count < 0:
        raise ValueError(f"top_k must be at least 0, got {count}")

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill_(scores < _least_of_best(scores, max(count, keep)), -math.inf)

    return rule


def top_p(mass: float, keep: int) -> LogitsRule:
    """Keep the smallest set of likeliest tokens whose probabilities sum to at least `mass`."""
    _within_one("top_p", mass)

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ascending, order = scores.sort(dim=-1)
        drop = ascending.softmax(-1).cumsum(-1) <= 1 - mass
        drop[:, -keep:] = False
        return scores.masked_fill_(drop.scatter(1, order, drop), -math.inf)

    return rule


def top_h(share: float) -> LogitsRule:
    """Of the 100 likeliest tokens, keep those whose entropy terms sum to at most `share` of the entropy of all 100.

    Nguyen et al., "Top-H Decoding", 2025.
    """
    if not 0 < share <= 1:
        raise ValueError(f"top_h must be above 0 and at most 1, got {share}")

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        best, tokens = scores.topk(min(100, scores.shape[-1]))
        terms = torch.distributions.Categorical(logits=best)
        within = (-terms.probs * terms.probs.log()).cumsum(-1) <= terms.entropy()[:, None] * share
        within[:, 0] = True
        drop = torch.ones_like(scores, dtype=torch.bool).scatter_(1, tokens, ~within)
        return scores.masked_fill_(drop, -math.inf)

    return rule


def min_p(share: float, keep: int) -> LogitsRule:
    """Keep the tokens at least `share` times as likely as the likeliest one."""
    _within_one("min_p", share)

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        probabilities = scores.softmax(-1)
        drop = probabilities < share * probabilities.amax(-1, keepdim=True)
        drop.scatter_(1, probabilities.topk(min(keep, scores.shape[-1])).indices, False)
        return scores.masked_fill_(drop, -math.inf)

    return rule


def typical_p(mass: float, keep: int) -> LogitsRule:
    """Keep the tokens whose information is nearest to the entropy, up to probability `mass`.

    Meister et al., "Locally Typical Sampling", 2022.
    """
    _within_one("typical_p", mass)

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        log_probabilities = scores.log_softmax(-1)
        entropy = -(log_probabilities * log_probabilities.exp()).nansum(-1, keepdim=True)
        distance, order = (-log_probabilities - entropy).abs().sort(dim=-1)
        cumulative = scores.gather(-1, order).softmax(-1).cumsum(-1)
        last = (cumulative < mass).sum(-1, keepdim=True).clamp_(max=scores.shape[-1] - 1)
        drop = distance > distance.gather(1, last)
        drop[:, :keep] = False
        return scores.masked_fill_(drop.scatter(1, order, drop), -math.inf)

    return rule


def epsilon_cutoff(least: float, keep: int) -> LogitsRule:
    """Keep the tokens of probability `least` and more. Hewitt et al., "Truncation Sampling", 2022."""
    _within_one("epsilon_cutoff", least)

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        drop = (scores.softmax(-1) < least) & (scores < _least_of_best(scores, keep))
        return scores.masked_fill_(drop, -math.inf)

    return rule


def eta_cutoff(epsilon: float, keep: int) -> LogitsRule:
    """As `epsilon_cutoff` with a threshold that falls with the entropy: min(epsilon, sqrt(epsilon) * exp(-entropy))."""
    _within_one("eta_cutoff", epsilon)

    def rule(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        entropy = torch.distributions.Categorical(logits=scores).entropy()
        least = (math.sqrt(epsilon) * torch.exp(-entropy)).clamp_(max=epsilon)[:, None]
        drop = (scores.softmax(-1) < least) & (scores < _least_of_best(scores, keep))
        return scores.masked_fill_(drop, -math.inf)

    return rule


def _least_of_best(scores: torch.Tensor, count: int) -> torch.Tensor:
    return scores.topk(min(count, scores.shape[-1])).values[:, -1:]


def _within_one(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
