"""Beam search, and beam search that draws its candidates: transformers' vectorised algorithm, step by step."""

import torch

from fastspeech.outputs import GenerateBeamEncoderDecoderOutput

from .cache import DecoderCache
from .interface import Ask, Record, Search
from .pages import Paged, PagedCache
from .plan import Plan, recorded
from .stopping import any_met, close_gaps, leaving_pays

_NEVER = -1.0e9
"""Added to scores that must not win; finite, so that they keep their order."""


def beam_search(cache: DecoderCache | PagedCache, prompt: torch.Tensor, plan: Plan) -> Search:
    """Follow the num_beams likeliest sequences of each utterance, and return the best that ended.

    The host waits for the device once a step, where it reads which rows go on and which utterances are done.

    transformers 5 pads ended sequences with the end token where pad_token_id is 0; here they are padded with 0.

    Args:
        cache: that the prompt will be read into, with num_beams rows an input.
        prompt: (inputs * num_beams, n) int64.

    Returns:
        A search for a `GenerateBeamEncoderDecoderOutput`.
    """
    beams = _Beams(prompt, plan)
    scores: list[torch.Tensor] | None = [] if plan.record_scores else None
    logits: list[torch.Tensor] | None = [] if plan.record_logits else None

    records: list[Record] = []
    recording = plan.record() is not None
    new_ids = prompt[:, cache.length :]
    while True:
        record = plan.record() if recording else None
        step = yield Ask(new_ids, record)
        step = step.float()
        if record is not None:
            records.append(record)
        if logits is not None:
            logits.append(step.clone())
        step = step.log_softmax(-1)
        for rule in plan.rules:
            step = rule(beams.ids, step)
        if scores is not None:
            scores.append(step)
        rows = beams.extend(step, scores)
        if beams.length == plan.max_length:
            break
        known = yield torch.cat((rows, beams.done()))
        done = known[len(rows) :]
        if all(done):
            break
        if isinstance(cache, Paged):
            cache.follow(known[: len(rows)])
        else:
            cache.reorder(rows)
        if plan.rows_may_leave and not plan.do_sample and any(done):
            ended = sum(done)
            if leaving_pays(ended, len(done) - ended):
                inputs = close_gaps([not d for d in done])
                cache.keep(inputs)
                beams.keep(inputs)
        new_ids = beams.ids[:, -1:]

    if plan.as_record:
        cache.separate()
    sequences, sequences_scores, beam_indices = beams.result()
    return GenerateBeamEncoderDecoderOutput(
        sequences=sequences,
        sequences_scores=sequences_scores if plan.record_scores else None,
        scores=None if scores is None else tuple(scores),
        logits=None if logits is None else tuple(logits),
        beam_indices=beam_indices,
        past_key_values=cache,
        **recorded(records),
    )


class _Beams:
    """The sequences that grow and those that have ended, num_beams of each an utterance, best first.

    With B utterances, K beams, and L = max_length, `_trails` (2, B * K, 2, L) int64 holds the growing sequences [0]
    and the ended ones [1]: of each its tokens [0] and the row that each new token came from [1].
    """

    def __init__(self, prompt: torch.Tensor, plan: Plan) -> None:
        self.plan = plan
        self.beams = plan.beams
        self.prompt_length = self.length = prompt.shape[1]
        # Enough that num_beams of them go on even where every beam proposes every token that ends a sequence.
        self.candidates = max(2, 1 + len(plan.eos)) * self.beams
        self.eos = torch.tensor(plan.eos, dtype=torch.int64, device=prompt.device)

        inputs = prompt.shape[0] // self.beams
        shape = (inputs, self.beams)
        self._trails = prompt.new_empty(2, prompt.shape[0], 2, plan.max_length)
        self._trails[:, :, 0, : self.length] = prompt
        self._trails[:, :, 1, : self.length] = -1
        self._spare = torch.empty_like(self._trails)
        # All beams are alike at first: only one may count.
        self._scores = prompt.new_full(shape, _NEVER, dtype=torch.float32)
        self._scores[:, 0] = 0.0
        self._ended_scores = prompt.new_full(shape, _NEVER, dtype=torch.float32)
        self._open = prompt.new_ones((inputs, 1), dtype=torch.bool)
        self._stuck = prompt.new_zeros((), dtype=torch.bool)
        limits = plan.limits or (plan.max_length,)
        self._limits = torch.tensor(limits, dtype=torch.float32, device=prompt.device)[:, None].expand(inputs, 1)
        self._number(torch.arange(inputs, device=prompt.device), prompt.new_zeros(shape))

        self._result = prompt.new_full((inputs, self.beams, 2, plan.max_length), plan.pad)
        self._result[:, :, 1] = -1
        self._result_scores = self._ended_scores.clone()

    @property
    def ids(self) -> torch.Tensor:
        """(B * K, length): the growing sequences."""
        return self._trails[0, :, 0, : self.length]

    def extend(self, log_probs: torch.Tensor, recorded: list[torch.Tensor] | None) -> torch.Tensor:
        """Grow every sequence by a token and take in those that end, given the next token's scores (B * K, V).

        Returns (B * K,) int64: the row that each row now continues.
        """
        inputs, vocabulary = self._scores.shape[0], log_probs.shape[1]
        totals = (log_probs.view(inputs, self.beams, vocabulary) + self._scores[:, :, None]).flatten(1)
        if self.plan.do_sample:
            chosen = torch.multinomial(totals.softmax(-1), self.candidates, generator=self.plan.generator)
            scores = totals.gather(1, chosen)
        else:
            scores, chosen = totals.topk(self.candidates)
        rows, tokens = self._first_row + chosen // vocabulary, chosen % vocabulary
        ends = self._that_end(rows, tokens, recorded)

        self._scores, growing = torch.add(scores, ends, alpha=_NEVER).topk(self.beams)

        # Only a candidate among the best may end: the others are there so that enough can go on.
        may_end = ends & self._open
        may_end[:, self.beams :] = False
        if self.plan.early_stopping is True:
            may_end &= ~self._full()
        final = scores / (self.length + 1 - self.prompt_length) ** self.plan.length_penalty
        final = torch.where(may_end, final, final + _NEVER)
        self._ended_scores, ended = torch.cat((self._ended_scores, final), 1).topk(self.beams)

        table = torch.cat((self._ended, torch.stack((rows, tokens, rows, may_end.long()))), 2)
        picked = table.gather(2, torch.cat((growing + self.beams, ended), 1).expand(4, -1, -1))
        self._ended[3] = picked[3, :, self.beams :]
        # (4, B, 2K) to (4, 2, B * K), as the trails lie
        picked = picked.unflatten(2, (2, self.beams)).transpose(1, 2).flatten(2)
        source = self._trails.flatten(0, 1).narrow(2, 0, self.length)
        target = self._spare.flatten(0, 1).narrow(2, 0, self.length)
        torch.index_select(source, 0, picked[0].flatten(), out=target)
        self._trails, self._spare = self._spare, self._trails
        self._trails[..., self.length] = picked[1:3].permute(1, 2, 0)
        self.length += 1
        self._close()
        return picked[0, 0]

    def done(self) -> torch.Tensor:
        """(B,) int64, 1 where an utterance's ended sequences are final before all have their longest."""
        done = ~self._open | self._stuck
        if self.plan.early_stopping is True:
            done |= self._full()
        return done.squeeze(1).long()

    def keep(self, inputs: list[int]) -> None:
        """Go on with these utterances only, in this order."""
        self._store()
        trails = self._trails.unflatten(1, (-1, self.beams))[:, inputs].flatten(1, 2)
        self._trails, self._spare = trails, torch.empty_like(trails)
        self._scores, self._ended_scores = self._scores[inputs], self._ended_scores[inputs]
        self._open, self._limits = self._open[inputs], self._limits[inputs]
        self._number(self._home[inputs], self._ended[3][inputs])

    def result(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The best num_return_sequences R of all B utterances that there were.

        Returns the sequences (B * R, length) int64, their scores (B * R,) float32, and the row that each new token
        came from (B * R, new tokens) int64, cut to the longest.
        """
        self._store()
        best = self._result[:, : self.plan.returned].flatten(0, 1)
        scores = self._result_scores[:, : self.plan.returned].flatten()
        end = self.prompt_length + int((best[:, 1] != -1).sum(1).max())
        return best[:, 0, :end].contiguous(), scores, best[:, 1, self.prompt_length : end].contiguous()

    def _that_end(self, rows: torch.Tensor, tokens: torch.Tensor, recorded: list[torch.Tensor] | None) -> torch.Tensor:
        """(B, candidates) bool: the candidates that are whole sequences."""
        ends = (tokens[:, :, None] == self.eos).any(2)
        if self.plan.criteria:
            ids = self._trails[0, rows.flatten(), 0, : self.length + 1]
            ids[:, self.length] = tokens.flatten()
            ends |= any_met(self.plan.criteria, ids, recorded).view_as(ends)
            self._stuck = ends.all()
        return ends | (self.length + 1 >= self._limits)

    def _close(self) -> None:
        """Close the utterances for which no growing sequence is likely to beat an ended one."""
        longest = self.plan.early_stopping == "never" and self.plan.length_penalty > 0
        length = (self._limits if self.plan.limits else self.plan.max_length) if longest else self.length
        best = self._scores[:, :1] / (length - self.prompt_length) ** self.plan.length_penalty
        worst = torch.where(self._ended[3].bool(), self._ended_scores.amin(1, keepdim=True), _NEVER)
        self._open &= (best > worst).any(1, keepdim=True) & (self.length < self._limits)

    def _full(self) -> torch.Tensor:
        return self._ended[3].bool().all(1, keepdim=True)

    def _number(self, home: torch.Tensor, has_ended: torch.Tensor) -> None:
        """Set what depends on which utterances are there: their place in the call, and of each row's in the batch.

        `_ended` (4, B, K) is what a place among the ended sequences holds while it does not change: the trail, the
        token and row behind its end, and whether a sequence is there.
        """
        self._home = home
        rows = torch.arange(has_ended.numel(), device=home.device).view_as(has_ended)
        self._first_row = rows[:, :1]
        self._ended = torch.stack(
            (
                has_ended.numel() + rows,
                torch.full_like(rows, self.plan.pad),
                torch.full_like(rows, -1),
                has_ended,
            )
        )

    def _store(self) -> None:
        ended = self._trails[1, :, :, : self.length].unflatten(0, (-1, self.beams))
        self._result[self._home, ..., : self.length] = ended
        self._result_scores[self._home] = self._ended_scores
