"""Greedy search and sampling: each sequence grows by one token a step."""

import torch

from fastspeech.outputs import GenerateEncoderDecoderOutput

from .cache import DecoderCache
from .graphs import upload
from .interface import Ask, Record, Search
from .pages import PagedCache
from .plan import Plan, recorded
from .stopping import any_met, close_gaps, leaving_pays


def sample(cache: DecoderCache | PagedCache, prompt: torch.Tensor, plan: Plan) -> Search:
    """Extend every row of `prompt` until it ends: by its likeliest token, or by one drawn where do_sample is set.

    The host waits for the device once a step, where it reads the tokens to see which rows have ended; never where
    nothing but max_length ends them.

    Args:
        cache: that the prompt will be read into.
        prompt: (rows, n) int64.

    Returns:
        A search for a `GenerateEncoderDecoderOutput`.
    """
    rows, length = prompt.shape
    result = prompt.new_full((rows, plan.max_length), plan.pad)
    ids = torch.empty_like(result)
    ids[:, :length] = prompt
    places = torch.arange(rows, device=prompt.device)
    running = [True] * rows
    limits = None if plan.limits is None else [limit for limit in plan.limits for _ in range(cache.rows_per_input)]
    ended: torch.Tensor | None = None
    scores: list[torch.Tensor] | None = [] if plan.record_scores else None
    logits: list[torch.Tensor] | None = [] if plan.record_logits else None
    # Without a token that ends sequences there is none to mark the end: such rows go on, as in transformers.
    marked = bool(plan.eos) or limits is not None
    draw = _Draw(rows, plan.generator) if plan.do_sample else None
    untouched = draw is None and not plan.rules and scores is None and logits is None
    if plan.streamer is not None:
        plan.streamer.put(prompt.cpu())

    records: list[Record] = []
    recording = plan.record() is not None
    new_ids = prompt[:, cache.length :]
    while True:
        record = plan.record() if recording else None
        step = yield Ask(new_ids, record)
        if record is not None:
            records.append(record)
        if not untouched:
            step = step.to(torch.float32, copy=scores is not None or logits is not None)
            if logits is not None:
                logits.append(step.clone())
            for rule in plan.rules:
                step = rule(ids[:, :length], step)
            if scores is not None:
                scores.append(step)
        tokens = step.argmax(-1) if draw is None else draw(step, places)
        if ended is not None:
            tokens.masked_fill_(ended, plan.pad)
        ids.select(1, length).copy_(tokens)
        length += 1
        if plan.streamer is not None:
            plan.streamer.put(tokens.cpu())

        now = running
        if plan.criteria:
            met = any_met(plan.criteria, ids[:, :length], scores)
            read, stopped = yield torch.stack((tokens, met.to(tokens.dtype)))
            now = [r and t not in plan.eos and not s for r, t, s in zip(running, read, stopped, strict=True)]
        elif plan.eos:
            read = yield tokens
            now = [r and t not in plan.eos for r, t in zip(running, read, strict=True)]
        if limits is not None:
            now = [n and length < limit for n, limit in zip(now, limits, strict=True)]
        if length == plan.max_length or not any(now):
            break
        new_ids = tokens.unsqueeze(1)
        if now != running:
            running = now
            inputs = _staying(running, cache.rows_per_input) if plan.rows_may_leave else None
            if inputs is not None:
                cache.keep(inputs)
                result[places, :length] = ids[:, :length]
                stay = [i * cache.rows_per_input + row for i in inputs for row in range(cache.rows_per_input)]
                running = [running[row] for row in stay]
                limits = None if limits is None else [limits[row] for row in stay]
                ids, places, new_ids = ids[stay], places[stay], new_ids[stay]
            ended = upload(torch.tensor(running), ids.device).logical_not_() if marked else None

    result[places, :length] = ids[:, :length]
    if plan.streamer is not None:
        plan.streamer.end()
    return GenerateEncoderDecoderOutput(
        sequences=result[:, :length].contiguous(),
        scores=None if scores is None else tuple(scores),
        logits=None if logits is None else tuple(logits),
        past_key_values=cache,
        **recorded(records),
    )


def _staying(running: list[bool], rows_per_input: int) -> list[int] | None:
    """The utterances to go on with, where it pays to take the others out of the batch; None where it does not."""
    of_input = [any(running[row : row + rows_per_input]) for row in range(0, len(running), rows_per_input)]
    ended = of_input.count(False)
    return close_gaps(of_input) if ended and leaving_pays(ended, len(of_input) - ended) else None


class _Draw:
    """Draws one token a row, the same ones whether or not other rows have left the batch."""

    def __init__(self, rows: int, generator: torch.Generator | None) -> None:
        self.rows = rows
        self.generator = generator
        self.probabilities: torch.Tensor | None = None

    def __call__(self, scores: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        probabilities = scores.softmax(-1)
        if len(places) == self.rows:
            return torch.multinomial(probabilities, 1, generator=self.generator).squeeze(1)
        # The generator gives every row its numbers by its place, so the rows that left are drawn for too.
        if self.probabilities is None:
            self.probabilities = scores.new_ones(self.rows, scores.shape[1])
        self.probabilities.index_copy_(0, places, probabilities)
        return torch.multinomial(self.probabilities, 1, generator=self.generator).squeeze(1)[places]
