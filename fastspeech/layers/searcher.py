"""Searches that begin and end while others go on: beams, drawn tokens, rules and criteria, for an engine."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from fastspeech.generation.beam import beam_search
from fastspeech.generation.graphs import upload
from fastspeech.generation.interface import Ask, Search
from fastspeech.generation.pages import PagedCache, PagePool
from fastspeech.generation.plan import Plan
from fastspeech.generation.sampling import sample
from fastspeech.generation.seats import Look, graphable
from fastspeech.layers.page_reader import PageReader


@dataclass(eq=False)
class Asking:
    """A search: `key`, what it is known by; `cache`, its own, in whose pages its frames are; what it asks for next."""

    key: Hashable
    cache: PagedCache
    search: Search
    ask: Ask


@dataclass(eq=False)
class Text:
    """A text of the likeliest tokens, in which a search has no say: `tokens`, of it so far; `limit`, how many it may
    have; `ends`, those that end it. The rest is as in `Asking`."""

    key: Hashable
    cache: PagedCache
    tokens: list[int]
    limit: int
    ends: tuple[int, ...]

    def take(self, token: int) -> bool:
        """Go on with a token; whether it is the last."""
        self.tokens.append(token)
        return token in self.ends or len(self.tokens) >= self.limit


class Searcher:
    """Carries searches on over the pages of a pool, all of them by what each asks for next.

    Args:
        model: a `WithHead`.
        pool: of the caches.
        rows: hypotheses at once, over all searches.

    Attributes:
        reader: reads what the searches ask for.
    """

    def __init__(self, model: Any, pool: PagePool, rows: int) -> None:
        self.reader, self._rows = PageReader(model, pool, rows), rows
        self._texts: dict[Hashable, Text] = {}
        self._going: dict[Hashable, Asking] = {}
        self._laid_out = 0
        self._device = pool.keys.device

    def add(self, key: Hashable, cache: PagedCache, prompt: Tensor, plan: Plan, alone: bool = False) -> None:
        """Begin to search by a plan, behind prompt (1, n) int64. The cache has read nothing.

        alone: no other is to be expected, so that the weights are to lie as they are read fastest for one row.
        """
        rows = 1 if alone and plan.beams == 1 else self._rows
        if not (self._texts or self._going) or rows > self._laid_out:
            self.reader.take_weights(rows)
            self._laid_out = rows
        if graphable(plan):
            limit = plan.max_length if plan.limits is None else plan.limits[0]
            self._texts[key] = Text(key, cache, prompt[0].tolist(), limit, plan.eos)
            return
        of_plan = beam_search if plan.beams > 1 else sample
        search = of_plan(cache, prompt.repeat_interleave(plan.beams, 0), plan)
        self._going[key] = Asking(key, cache, search, cast(Ask, next(search)))

    def remove(self, key: Hashable) -> None:
        """Forget a search, if it is here. Its pages may be taken by others from now on."""
        self._texts.pop(key, None)
        if (searched := self._going.pop(key, None)) is not None:
            searched.search.close()

    def search(self) -> list[tuple[Hashable, Tensor | BaseException]]:
        """Read what the searches ask for, and let them go on. Returns those that ended, or failed, each with its best
        tokens (length,) int64 or the error; they are forgotten."""
        by_count: dict[int, tuple[list[Text], list[Asking]]] = {}
        for text in self._texts.values():
            by_count.setdefault(len(text.tokens) - text.cache.length, ([], []))[0].append(text)
        for searched in self._going.values():
            by_count.setdefault(searched.ask.input_ids.shape[1], ([], []))[1].append(searched)
        ended = [end for groups in by_count.values() for end in self._read(*groups)]
        for key, _ in ended:
            self.remove(key)
        return ended

    def _read(self, texts: list[Text], searches: list[Asking]) -> list[tuple[Hashable, Tensor | BaseException]]:
        """Read as many tokens for each of a group. Returns those that ended."""
        both: list[Text | Asking] = [*texts, *searches]
        try:
            ids = [searched.ask.input_ids for searched in searches]
            if texts:
                new = torch.tensor([text.tokens[text.cache.length :] for text in texts])
                ids.insert(0, upload(new, self._device))
            logits = self.reader.read(torch.cat(ids), [each.cache for each in both])
        except Exception as error:
            if len(both) == 1:
                return [(both[0].key, error)]
            # One may be at fault, and the others are not to suffer for it.
            of_texts = [end for text in texts for end in self._read([text], [])]
            return of_texts + [end for searched in searches for end in self._read([], [searched])]
        likeliest = logits[: len(texts)].argmax(-1).tolist()
        of_each = logits[len(texts) :].split([len(searched.ask.input_ids) for searched in searches])
        ended = _go_on(list(zip(searches, of_each, strict=True)))
        written = [text for text, token in zip(texts, likeliest, strict=True) if text.take(token)]
        return ended + [(text.key, torch.tensor(text.tokens)) for text in written]


def _go_on(answers: Sequence[tuple[Asking, Any]]) -> list[tuple[Hashable, Tensor | BaseException]]:
    """Let searches go on with what they asked for, to what each asks to be read next. Returns those that ended.

    What they want to know is on its way from the device while others are at work, so that it is waited for once."""
    ended: list[tuple[Hashable, Tensor | BaseException]] = []
    while answers:
        looks = []
        for searched, answer in answers:
            try:
                asked = searched.search.send(answer)
                if isinstance(asked, Ask):
                    searched.ask = asked
                else:
                    looks.append((searched, Look(asked)))
            except StopIteration as end:
                ended.append((searched.key, end.value.sequences[0]))
            except BaseException as error:  # whatever a rule raises, the others go on
                ended.append((searched.key, error))
        answers = [(searched, look.known().tolist()) for searched, look in looks]
    return ended
