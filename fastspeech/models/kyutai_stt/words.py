"""When each word was said, by where in its tokens a Kyutai model wrote it.

The model writes one token for each frame it hears, a fixed delay behind the speech: `MARK` in front of a word, the
word's pieces, and padding everywhere else. There are two rules, and both put the beginning of a word at the step behind
its mark, less the delay: `offline_words` reads the tokens of a whole recording, as Kyutai's script for files does;
`WordTracker` takes them one by one, as Kyutai's server does. They differ in how soon, and where, a word ends.

Words that follow one another without a mark share what is between two marks as the offline rule has it: each but the
last takes a frame for each of its tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fastspeech.words import word_spans

MARK = 0
"""The token that stands in front of a word, the vocabulary's `<unk>`."""

PIECES_FROM = 4
"""The least token with a text; 1 to 3 are `<s>`, `</s>` and padding."""

_END = 2

_LAST_WORD_S = 1.0
"""The most a word takes that no mark follows."""

_BROKEN = "\N{REPLACEMENT CHARACTER}"

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class TimedWord:
    """A word, its times in seconds, and the steps that wrote it."""

    text: str
    start: float
    end: float
    steps: tuple[int, ...] = field(default=(), compare=False)


def offline_words(tokens: Sequence[int], decode: Decode, frame_rate: float, offset: float) -> list[TimedWord]:
    """The words of a recording, by the rule of `stt_from_file_pytorch.py` of Kyutai's delayed-streams-modeling.

    A word lasts from the step behind its mark to the next mark; the last one to `</s>`, or for one second. What was
    written in front of the first mark has no time and is left out. Where words share a mark, the original encodes each
    again to count its tokens; here those that the model wrote are counted, which never leads past the next mark.

    Args:
        tokens: of each step, without the one that generation begins with.
        decode: ids to text.
        frame_rate: steps a second.
        offset: seconds from the beginning of speech in the audio to the beginning of its text in the tokens: the delay
            and the silence in front.
    """
    marks = [step for step, token in enumerate(tokens) if token == MARK]
    words = []
    for number, mark in enumerate(marks, 1):
        first = mark + 1
        last = number == len(marks)
        end: float = len(tokens) if last else marks[number]
        if last and _END in tokens[first:]:
            end = tokens.index(_END, first)
        places = [place for place in range(first, int(end)) if tokens[place] >= PIECES_FROM]
        pieces = [tokens[place] for place in places]
        if last and end == len(tokens):
            end = min(end, first + max(_LAST_WORD_S * frame_rate, len(pieces)))
        spans = word_spans(pieces, decode)
        behind = [first + begin for _, begin, _ in spans[1:]]
        for (word, begin, stop), until in zip(spans, [*behind, end], strict=False):
            start = max(0.0, (first + begin) / frame_rate - offset)
            steps = tuple(places[begin:stop])
            words.append(TimedWord(word, start, max(0.0, until / frame_rate - offset), steps))
    return words


@dataclass(frozen=True)
class WordChange:
    """What a token told of the words.

    Attributes:
        kind: "partial": a piece of a word came; "word": its pieces are all there; "end_word": its end is known.
        word: what there is of it.
        start, end: in seconds; `end` is None until it is known.
        text: all text so far, this word included.
    """

    kind: Literal["partial", "word", "end_word"]
    word: str
    start: float
    end: float | None
    text: str


class WordTracker:
    """Finds the words in tokens that come one by one, by the rule of `asr.rs` of Kyutai's moshi.

    A word is there when its pieces stop: at a mark, at padding, or where the next word begins. Its start is the last
    mark before it, its end the next. Times never go back.

    The original drops what is written before `delay` steps, when nothing can have been heard; here it has time 0, so
    that no text is lost. A character whose bytes are cut over several tokens is held back until it is whole, even over
    padding.

    Args:
        decode: ids to text.
        frame_rate: steps a second.
        delay: steps from a sound to its text.
        offset: seconds to subtract from all times.

    Attributes:
        text: all that was told so far.
    """

    def __init__(self, decode: Decode, frame_rate: float, delay: int, offset: float = 0.0) -> None:
        self.text = ""
        self._complete_text = ""
        self._decode = decode
        self._rate = frame_rate
        self._steps = -delay
        self._offset = offset
        self._marked = self._steps
        self._behind_mark = 0
        self._before: list[int] = []
        self._pieces: list[int] = []
        self._added = ""
        self._first = 0
        self._open: tuple[str, float] | None = None

    def push(self, token: int) -> list[WordChange]:
        """What the token of the next step tells."""
        self._steps += 1
        if token >= PIECES_FROM:
            return self._take(token)
        changes = self._complete() if self._readable() else []
        if token == MARK:
            self._marked, self._behind_mark = self._steps, 0
            changes += self._end(self._seconds(self._marked))
        return changes

    def finish(self, duration: float) -> list[WordChange]:
        """What is left when no token follows. The last word ends after a second, or with the audio of `duration` s."""
        changes = self._complete()
        if self._open is not None:
            start = self._open[1]
            changes += self._end(max(start, min(start + _LAST_WORD_S, duration)))
        return changes

    def _take(self, token: int) -> list[WordChange]:
        changes = self._complete() if self._readable() and self._begins_word(token) else []
        if not self._pieces:
            self._first = self._marked + self._behind_mark
            changes += self._end(self._seconds(self._first))
        self._pieces.append(token)
        self._behind_mark += 1
        self._added = self._added_by(self._pieces)
        if self._readable():
            self.text = self._complete_text + self._added
            changes.append(WordChange("partial", self._added.strip(), self._seconds(self._first), None, self.text))
        return changes

    def _added_by(self, pieces: list[int]) -> str:
        """The text of pieces behind a word, since a decoder drops the space at the beginning of a text."""
        before = self._decode(self._before) if self._before else ""
        text = self._decode(self._before + pieces)
        # Bytes that make no character spoil those before them in the same run.
        return text[len(before) :] if text.startswith(before) else self._decode(pieces)

    def _begins_word(self, token: int) -> bool:
        added = self._added_by([*self._pieces, token])
        return added[len(self._added) :][:1].isspace()

    def _readable(self) -> bool:
        """Whether there is a word, and not in the middle of a character."""
        return bool(self._added.strip()) and not self._added.endswith(_BROKEN)

    def _complete(self) -> list[WordChange]:
        added, word = self._added, self._added.strip()
        self._before, self._pieces, self._added = self._pieces, [], ""
        if not word:
            return []
        self.text = self._complete_text = self._complete_text + added
        self._open = (word, self._seconds(self._first))
        return [WordChange("word", word, self._open[1], None, self.text)]

    def _end(self, end: float) -> list[WordChange]:
        if self._open is None:
            return []
        word, start = self._open
        self._open = None
        return [WordChange("end_word", word, start, end, self.text)]

    def _seconds(self, steps: int) -> float:
        return max(0.0, steps / self._rate - self._offset)
