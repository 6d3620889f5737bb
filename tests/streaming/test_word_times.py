"""Word times of Kyutai models: both rules on constructed tokens, and what holds for any tokens."""

import math

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from fastspeech.models.kyutai_stt.words import TimedWord, WordChange, WordTracker, offline_words

RATE = 12.5
PIECES = ["<unk>", "<s>", "</s>", "<pad>", "▁Mr", ".", "▁Quil", "ter", "▁is", "▁the", "▁", "é", ","]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
IDS = {piece: number for number, piece in enumerate([*PIECES, *BYTES])}
MARK, END, PAD = IDS["<unk>"], IDS["</s>"], IDS["<pad>"]

BACKEND = tokenizers.Tokenizer(tokenizers.models.WordLevel(IDS, unk_token="<unk>"))
BACKEND.decoder = tokenizers.decoders.Sequence(
    [
        tokenizers.decoders.Replace("▁", " "),
        tokenizers.decoders.ByteFallback(),
        tokenizers.decoders.Fuse(),
        tokenizers.decoders.Strip(" ", 1, 0),
    ]
)


def decode(ids: list[int]) -> str:
    return BACKEND.decode(ids)


def written(*pieces: str) -> list[int]:
    """Tokens from a notation: "0" for a mark, "-" for padding."""
    return [{"0": MARK, "-": PAD}.get(piece, IDS.get(piece, -1)) for piece in pieces]


def tracked(tokens: list[int], delay: int = 0, offset: float = 0.0, duration: float = math.inf) -> list[WordChange]:
    tracker = WordTracker(decode, RATE, delay, offset)
    changes = [change for token in tokens for change in tracker.push(token)]
    return changes + tracker.finish(duration)


def ended(changes: list[WordChange]) -> list[TimedWord]:
    return [
        TimedWord(change.word, change.start, change.end)
        for change in changes
        if change.kind == "end_word" and change.end is not None
    ]


def steps(*words: tuple[str, float, float], offset: float = 0.0) -> list[TimedWord]:
    return [TimedWord(word, start / RATE - offset, end / RATE - offset) for word, start, end in words]


QUILTER = written(*("-",) * 9, "0", "▁Mr", ".", "-", "0", "▁Quil", "ter", "-", "-", "0", "▁is", "-", "-", "-")
"""Marks at steps 9, 13 and 18; 23 steps."""


def test_offline_words_last_from_the_step_behind_their_mark_to_the_next_mark() -> None:
    words = offline_words(QUILTER, decode, RATE, 0.5)
    assert words == steps(("Mr.", 10, 13), ("Quilter", 14, 18), ("is", 19, 23), offset=0.5)


def test_the_last_offline_word_ends_with_the_text_or_after_a_second() -> None:
    tokens = [*QUILTER, *written(*("-",) * 20)]
    assert offline_words(tokens, decode, RATE, 0.0)[-1:] == steps(("is", 19, 19 + 12.5))
    tokens[24] = END
    assert offline_words(tokens, decode, RATE, 0.0)[-1:] == steps(("is", 19, 24))


def test_more_than_a_second_of_pieces_behind_the_last_mark() -> None:
    words = offline_words(written("0", *("▁is",) * 20, "-"), decode, RATE, 0.0)
    assert words[-1:] == steps(("is", 20, 21))


def test_offline_words_that_share_a_mark_take_a_frame_a_token() -> None:
    tokens = written("0", "▁Mr", ".", "▁Quil", "ter", "-", "▁is", "-", "-", "0", "▁the")
    expected = steps(("Mr.", 1, 3), ("Quilter", 3, 5), ("is", 5, 9), ("the", 10, 11))
    assert offline_words(tokens, decode, RATE, 0.0) == expected


def test_offline_words_without_a_mark_or_a_text() -> None:
    assert offline_words([], decode, RATE, 0.0) == []
    assert offline_words(written("▁Mr", ".", "-"), decode, RATE, 0.0) == []
    assert offline_words(written("▁Mr", "0", "0", "-", "0"), decode, RATE, 0.0) == []


def test_offline_times_are_not_negative() -> None:
    assert offline_words(QUILTER, decode, RATE, 1.1)[0] == TimedWord("Mr.", 0.0, 0.0)


def test_streamed_words_start_at_a_mark_and_end_at_the_next() -> None:
    changes = tracked(QUILTER, delay=6)
    assert ended(changes[:-1]) == steps(("Mr.", 10 - 6, 14 - 6), ("Quilter", 14 - 6, 19 - 6))
    assert [(change.kind, change.word) for change in changes] == [
        ("partial", "Mr"),
        ("partial", "Mr."),
        ("word", "Mr."),
        ("end_word", "Mr."),
        ("partial", "Quil"),
        ("partial", "Quilter"),
        ("word", "Quilter"),
        ("end_word", "Quilter"),
        ("partial", "is"),
        ("word", "is"),
        ("end_word", "is"),
    ]
    assert changes[-1].text == "Mr. Quilter is"
    assert [change.text for change in changes[:3]] == ["Mr", "Mr.", "Mr."]


def test_a_streamed_word_is_told_when_its_pieces_stop() -> None:
    tracker = WordTracker(decode, RATE, 0)
    kinds = [[change.kind for change in tracker.push(token)] for token in QUILTER[9:]]
    told = [["partial"], ["partial"], ["word"]]
    assert kinds == [[], *told, ["end_word"], *told, [], ["end_word"], ["partial"], ["word"], [], []]


def test_the_last_streamed_word_ends_with_the_audio_or_after_a_second() -> None:
    start = 19 / RATE
    assert ended(tracked(QUILTER))[-1] == TimedWord("is", start, start + 1.0)
    assert ended(tracked(QUILTER, duration=1.75))[-1] == TimedWord("is", start, 1.75)
    assert ended(tracked(QUILTER, duration=0.0))[-1] == TimedWord("is", start, start)


def test_streamed_times_without_the_silence_in_front() -> None:
    assert ended(tracked(QUILTER, delay=6, offset=0.16))[0] == TimedWord("Mr.", 4 / RATE - 0.16, 8 / RATE - 0.16)
    assert ended(tracked(QUILTER, delay=31))[0] == TimedWord("Mr.", 0.0, 0.0)


def test_streamed_words_that_share_a_mark_take_a_frame_a_token() -> None:
    tokens = written("0", "▁Mr", ".", "▁Quil", "ter", "-", "▁is", "-", "-", "0", "▁the")
    expected = steps(("Mr.", 1, 3), ("Quilter", 3, 5), ("is", 5, 10), ("the", 10, 22.5))
    assert ended(tracked(tokens)) == expected


def test_what_is_written_before_the_delay_has_time_zero() -> None:
    changes = tracked(written("▁Mr", "0", "▁is", "-", "-"), delay=4)
    assert changes[-1].text == "Mr is"
    assert ended(changes)[0] == TimedWord("Mr", 0.0, 0.0)


def test_a_character_cut_over_steps_is_held_back() -> None:
    """U+00E9 is C3 A9, U+20AC E2 82 AC."""
    tokens = written("0", "▁is", "<0xC3>", "-", "<0xA9>", "-", "0", "▁", "<0xE2>", "<0x82>", "0", "<0xAC>", "▁the")
    changes = tracked(tokens)
    assert [(change.kind, change.word) for change in changes if change.kind != "end_word"] == [
        ("partial", "is"),
        ("partial", "isé"),
        ("word", "isé"),
        ("partial", "€"),
        ("word", "€"),
        ("partial", "the"),
        ("word", "the"),
    ]
    assert changes[-1].text == "isé € the"


def test_bytes_that_make_no_character_are_told_in_the_end() -> None:
    assert tracked(written("0", "▁is", "-", "0", "▁", "<0xC3>", "-"))[-1].text == "is \N{REPLACEMENT CHARACTER}"
    changes = tracked(written("0", "<0xC3>", "<0xA9>", "-", "0", "<0xC3>", "-"))
    assert changes[-1].text == "é\N{REPLACEMENT CHARACTER}"
    changes = tracked(written("0", "<0xC3>", "▁is", "<0xA9>", "▁the", "-"))
    assert changes[-1].text == decode(written("<0xC3>", "▁is", "<0xA9>", "▁the"))


def rust(tokens: list[int], delay: int) -> list[tuple[str, float | None]]:
    """The rule of asr.rs as the facts (5.1) have it, written anew: (word, start) and ("", stop) as they are told."""
    told: list[tuple[str, float | None]] = []
    pending: list[int] = []
    last_stop, waiting = 0.0, False
    for n, token in enumerate(tokens, 1):
        if n < delay:
            continue
        if token in (MARK, PAD):
            if pending:
                told.append((decode(pending), last_stop))
                pending, waiting = [], True
        else:
            pending.append(token)
        if token == MARK:
            stop = (n - delay) / RATE
            if waiting:
                told.append(("", stop))
                waiting = False
            last_stop = stop
    return told


WORDS = [
    written("▁Mr", "."),
    written("▁Quil", "ter"),
    written("▁is"),
    written("▁", "<0xC3>", "<0xA9>"),
    written("▁the"),
]


@given(
    delay=st.sampled_from([0, 1, 6, 31]),
    said=st.lists(st.tuples(st.sampled_from(WORDS), st.integers(0, 3), st.integers(1, 4)), max_size=12),
)
def test_where_each_word_has_its_mark_the_rule_is_that_of_the_original(
    delay: int, said: list[tuple[list[int], int, int]]
) -> None:
    tokens = [PAD] * delay
    for word, silence, marks in said:
        tokens += [PAD] * silence + [MARK] * marks + word
    tokens.append(MARK)
    tracker = WordTracker(decode, RATE, delay)
    told: list[tuple[str, float | None]] = []
    for token in tokens:
        for change in tracker.push(token):
            if change.kind == "word":
                told.append((change.word, change.start))
            elif change.kind == "end_word":
                told.append(("", change.end))
    assert told == [(word.strip(), time) for word, time in rust(tokens, delay)]


ANY = st.lists(
    st.one_of(
        st.sampled_from([[MARK], [PAD], [END]]),
        st.sampled_from([[IDS[piece]] for piece in PIECES]),
        st.sampled_from([written("<0xC3>", "<0xA9>"), written("<0xE2>", "<0x82>", "<0xAC>")]),
        st.integers(len(PIECES), len(IDS) - 1).map(lambda byte: [byte]),
    ),
    max_size=40,
).map(lambda runs: [token for run in runs for token in run])
"""Tokens of all kinds, a byte in four runs."""


@given(tokens=ANY, delay=st.integers(0, 40), offset=st.floats(0, 3), duration=st.floats(0, 6))
def test_times_never_go_back(tokens: list[int], delay: int, offset: float, duration: float) -> None:
    for words in (offline_words(tokens, decode, RATE, offset), ended(tracked(tokens, delay, offset, duration))):
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times) and all(time >= 0 for time in times)


@given(tokens=ANY)
def test_every_word_is_told_once_and_then_ended(tokens: list[int]) -> None:
    changes = [change for change in tracked(tokens) if change.kind != "partial"]
    assert [change.kind for change in changes] == ["word", "end_word"] * (len(changes) // 2)
    for told, end in zip(changes[::2], changes[1::2], strict=True):
        assert (told.word, told.start, told.text) == (end.word, end.start, end.text)


@given(tokens=ANY)
def test_the_text_is_what_all_tokens_decode_to(tokens: list[int]) -> None:
    text = decode([token for token in tokens if token > PAD])
    changes = tracked(tokens)
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert (changes[-1].text if changes else "").strip() == text.strip()


def test_the_rules_agree_on_where_words_start() -> None:
    offline = offline_words(QUILTER, decode, RATE, 6 / RATE)
    assert [word.start for word in ended(tracked(QUILTER, delay=6))] == pytest.approx([word.start for word in offline])
