"""Speculative decoding: a small model drafts tokens, and one pass of the large one checks them all.

Leviathan, Kalman and Matias, "Fast Inference from Transformers via Speculative Decoding", 2023.
"""

from typing import Any

import torch

from fastspeech.outputs import GenerateEncoderDecoderOutput

from .cache import DecoderCache
from .config import GenerationConfig
from .interface import StepModel
from .plan import Plan
from .stopping import any_met


class Drafter:
    """An assistant model with a cache of its own.

    Args:
        model: that drafts.
        model_inputs: the audio, as the assistant takes it.
        config: of the call; what it leaves open is the assistant's.
        plan: of the call. Its rules hold for drafts too.

    Raises:
        ValueError: a schedule that is not known, or settings out of range.
    """

    def __init__(self, model: Any, model_inputs: dict[str, Any], config: GenerationConfig, plan: Plan) -> None:
        config = config.filled_from(model.generation_config)
        self.model: StepModel = model
        self.plan = plan
        self.tokens = 20 if config.num_assistant_tokens is None else config.num_assistant_tokens
        threshold = config.assistant_confidence_threshold
        self.threshold = 0.4 if threshold is None else threshold
        schedule = config.num_assistant_tokens_schedule or "constant"
        if schedule not in ("constant", "heuristic", "heuristic_transient"):
            raise ValueError(f"num_assistant_tokens_schedule must be constant or heuristic, got {schedule!r}")
        if self.tokens < 1:
            raise ValueError(f"num_assistant_tokens must be at least 1, got {self.tokens}")
        self.adapts = schedule != "constant"
        positions = getattr(model, "decoder_positions", None)
        self.most = plan.max_length if positions is None else min(plan.max_length, positions)
        self.cache = self.model.start_decoding(model_inputs, 1, self.most)

    def draft(self, ids: torch.Tensor) -> tuple[list[int], list[torch.Tensor]]:
        """Tokens that may follow ids (1, length), and with do_sample what each was drawn from, (V,) probabilities.

        It ends early where a token ends the sequence, or is less likely than the threshold. At most so many that the
        token the checking pass adds still fits.
        """
        start = ids.shape[1]
        tokens: list[int] = []
        drawn_from: list[torch.Tensor] = []
        for _ in range(min(self.tokens, self.most - start - 1)):
            scores = self.model.decode(ids[:, self.cache.length :], self.cache).float()
            for rule in self.plan.rules:
                scores = rule(ids, scores)
            probabilities = scores[0].softmax(-1)
            token = int(probabilities.multinomial(1) if self.plan.do_sample else scores[0].argmax())
            tokens.append(token)
            if self.plan.do_sample:
                drawn_from.append(probabilities)
            if token in self.plan.eos or probabilities[token] < self.threshold:
                break
            ids = torch.cat((ids, ids.new_tensor([[token]])), 1)
        return tokens, drawn_from

    def learn(self, length: int, all_taken: bool) -> None:
        """Forget what was drafted behind the first `length` - 1 tokens; draft two more next time, or one less."""
        self.cache.rewind(min(self.cache.length, length - 1))
        if self.adapts:
            self.tokens = self.tokens + 2 if all_taken else max(1, self.tokens - 1)


def speculate(
    model: StepModel, cache: DecoderCache, prompt: torch.Tensor, plan: Plan, drafter: Drafter
) -> GenerateEncoderDecoderOutput:
    """`sample` for one utterance, in fewer passes of `model`: the tokens are those of greedy search, and with do_sample
    they are distributed as there.

    Args:
        cache: as the model's `start_decoding` gave it.
        prompt: (1, n) int64.
    """
    length = prompt.shape[1]
    ids = prompt.new_full((1, plan.max_length), plan.pad)
    ids[:, :length] = prompt
    scores: list[torch.Tensor] = []
    logits: list[torch.Tensor] = []
    passes = 0
    if plan.streamer is not None:
        plan.streamer.put(prompt.cpu())

    ended = False
    while not ended:
        drafted, drawn_from = drafter.draft(ids[:, :length])
        new_ids = torch.cat((ids[:, cache.length : length], ids.new_tensor([drafted])), 1)
        checked = model.decode(new_ids, cache, None, True)[:, -1 - len(drafted) :].float()
        passes += 1
        taken = 0
        for place, step in enumerate(checked.unbind(1)):
            if plan.record_logits:
                logits.append(step.clone())
            for rule in plan.rules:
                step = rule(ids[:, :length], step)
            scores.append(step)
            proposed = drafted[place] if place < len(drafted) else None
            if plan.do_sample:
                token = draw(step[0].softmax(-1), proposed, drawn_from[place] if drawn_from[place:] else None)
            else:
                token = int(step.argmax())
            ids[:, length] = token
            length += 1
            if plan.streamer is not None:
                plan.streamer.put(ids[0, length - 1 : length].cpu())
            ended = token in plan.eos or length == plan.max_length
            if plan.criteria:
                recorded = scores if plan.record_scores else None
                ended = bool(any_met(plan.criteria, ids[:, :length], recorded)) or ended
            if ended or token != proposed:
                break
            taken += 1
        cache.rewind(min(cache.length, length - 1))
        drafter.learn(length, taken == len(drafted))

    if plan.streamer is not None:
        plan.streamer.end()
    return GenerateEncoderDecoderOutput(
        sequences=ids[:, :length].contiguous(),
        scores=tuple(scores) if plan.record_scores else None,
        logits=tuple(logits) if plan.record_logits else None,
        past_key_values=cache,
        target_passes=passes,
    )


def draw(wanted: torch.Tensor, proposed: int | None, drawn_from: torch.Tensor | None) -> int:
    """A token distributed as `wanted` (V,), where possible the `proposed` one, which was drawn from `drawn_from` (V,).

    It is taken with probability min(1, p / q); in its place comes one drawn from max(0, p - q), normalised.
    """
    if proposed is None or drawn_from is None:
        return int(wanted.multinomial(1))
    if torch.rand((), device=wanted.device) * drawn_from[proposed] < wanted[proposed]:
        return proposed
    return int((wanted - drawn_from).clamp(min=0.0).multinomial(1))
