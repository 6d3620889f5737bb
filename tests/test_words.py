"""Word times: the path against all paths there are, constructed attention, and words of every script."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fastspeech.words import alignment_costs, cheapest_path, token_starts, word_spans, words_of


def all_paths(rows: int, columns: int) -> Iterator[list[tuple[int, int]]]:
    if rows == columns == 1:
        yield [(0, 0)]
    for down, right in ((1, 1), (1, 0), (0, 1)):
        if rows > down and columns > right:
            for path in all_paths(rows - down, columns - right):
                yield [*path, (rows - 1, columns - 1)]


def test_the_cheapest_of_all_paths() -> None:
    random = np.random.default_rng(0)
    for rows in range(1, 6):
        for columns in range(1, 6):
            costs = random.standard_normal((rows, columns))
            found = list(zip(*(side.tolist() for side in cheapest_path(costs)), strict=True))
            paths = list(all_paths(rows, columns))
            assert found in paths
            best = min(sum(costs[cell] for cell in path) for path in paths)
            assert sum(costs[cell] for cell in found) == pytest.approx(best)


def attention(bounds: list[int], frames: int, noise: float = 0.02) -> list[torch.Tensor]:
    """Two layers of three heads in which token t hears the frames from bounds[t] to the next; the last head of each
    layer hears the same everywhere."""
    torch.manual_seed(0)
    layers = []
    for _ in range(2):
        weights = noise * torch.rand(2, 3, len(bounds), frames)
        for token, (first, end) in enumerate(zip(bounds, [*bounds[1:], frames], strict=True)):
            weights[1, :2, token, first:end] += 1
        weights[1, 2] = 0.5
        layers.append(weights / weights.sum(-1, keepdim=True))
    return layers


def test_constructed_attention_gives_the_times_it_was_made_with() -> None:
    bounds = [0, 12, 20, 41, 60]
    weights = attention(bounds, 80)
    costs = alignment_costs(weights, 1, slice(0, 5), 80)
    assert costs.shape == (5, 80)
    assert max(abs(a - b) for a, b in zip(token_starts(costs), bounds, strict=True)) <= 2
    # frames behind the end of the clip do not count
    beyond = [torch.cat((layer, torch.full((2, 3, 5, 30), 9.0)), -1) for layer in weights]
    assert np.allclose(alignment_costs(beyond, 1, slice(0, 5), 80), costs, atol=1e-5)


def test_one_odd_frame_is_smoothed_away() -> None:
    weights = attention([0, 40], 80)
    for layer in weights:
        layer[1, :, 1, 5] = 3.0
    assert abs(token_starts(alignment_costs(weights, 1, slice(0, 2), 80))[1] - 40) <= 2


def test_times_are_in_order_and_within_the_audio() -> None:
    random = np.random.default_rng(0)
    pieces = [" a", "b", " c", " d", ".", " e"]
    for _ in range(20):
        count, frames = int(random.integers(1, 40)), int(random.integers(1, 30))
        ids = random.integers(0, len(pieces), count).tolist()
        costs = random.standard_normal((count + int(random.integers(2)), frames))
        words = words_of(ids, [0.5] * count, costs, lambda some: "".join(pieces[i] for i in some).lstrip(), 10.0, 3.0)
        times = [time for word in words for time in (word.start, word.end)]
        assert times == sorted(times) and times[0] == 10.0 and times[-1] <= 13.0
        assert "".join(word.text for word in words) == "".join(pieces[i] for i in ids).replace(" ", "")
    assert words_of([], [], np.zeros((1, 5)), str, 0.0, 1.0) == ()


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["", " hello", " wor", "ld", ".", " It", "'s"], [("hello", 0, 2), ("world.", 2, 5), ("It's", 5, 7)]),
        (["hel", "lo", " ", "you"], [("hello", 0, 2), ("you", 3, 4)]),
        (
            ["日", "本", "語", "。", "ok", "か"],
            [("日", 0, 1), ("本", 1, 2), ("語。", 2, 4), ("ok", 4, 5), ("か", 5, 6)],
        ),
    ],
)
def test_words(pieces: list[str], expected: list[tuple[str, int, int]]) -> None:
    spans = word_spans(list(range(len(pieces))), lambda some: "".join(pieces[i] for i in some).lstrip())
    assert spans[1:] == expected[1:] and spans[0][0] == expected[0][0] and spans[0][2] == expected[0][2]


def test_a_character_of_several_tokens() -> None:
    data = [b"a", b" \xd0", b"\xb6", b"\xd0\xb6", b" b"]
    spans = word_spans(range(5), lambda some: b"".join(data[i] for i in some).decode(errors="replace"))
    assert spans == [("a", 0, 1), ("жж", 1, 4), ("b", 4, 5)]
