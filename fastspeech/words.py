"""When each word was said, by what the decoder attended to while it wrote it."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fastspeech.generation.streamers import stands_alone
from fastspeech.transcripts import Word

_SMOOTHED = 7
"""Frames of the median filter."""


def alignment_costs(weights: Sequence[torch.Tensor], row: int, tokens: slice, frames: int) -> NDArray[np.float32]:
    """(tokens, frames): how little each token of a row heard of each frame.

    The weights of each head are brought to mean 0 and variance 1 over the frames, smoothed over them, and averaged over
    heads and layers, as Moonshine's runtime does.

    Args:
        weights: cross-attention of each layer, (rows, heads, tokens, frames).
        row, tokens, frames: the part that counts.
    """
    picked = torch.stack([layer[row, :, tokens, :frames].float() for layer in weights])
    spread = picked.std(-1, correction=0, keepdim=True)
    scores = (picked - picked.mean(-1, keepdim=True)) / spread.clamp(min=1e-10)
    margin = _SMOOTHED // 2
    padded = torch.cat((scores[..., :1].expand(*scores.shape[:-1], margin), scores), -1)
    padded = torch.cat((padded, scores[..., -1:].expand(*scores.shape[:-1], margin)), -1)
    smoothed = padded.unfold(-1, _SMOOTHED, 1).median(-1).values
    return -smoothed.mean((0, 1)).cpu().numpy()


def cheapest_path(costs: NDArray[np.floating]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Dynamic time warping: the rows and columns of the path from the first cell of costs (n, m) to the last, with
    steps down, right or both, over which their sum is least."""
    rows, columns = costs.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    # A cell needs only those of the two antidiagonals before its own.
    for diagonal in range(rows + columns - 1):
        i = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        j = diagonal - i
        best = np.minimum(np.minimum(total[i, j], total[i, j + 1]), total[i + 1, j])
        total[i + 1, j + 1] = costs[i, j] + best
    i, j = rows - 1, columns - 1
    path = [(i, j)]
    while i or j:
        # ties: both at once, then down
        came = ((total[i, j], i - 1, j - 1), (total[i, j + 1], i - 1, j), (total[i + 1, j], i, j - 1))
        _, i, j = min(came, key=lambda step: step[0])
        path.append((i, j))
    along = np.array(path[::-1])
    return along[:, 0], along[:, 1]


def token_starts(costs: NDArray[np.floating]) -> list[int]:
    """The frame at which each token of costs (tokens, frames) begins: not before the one in front of it."""
    rows, columns = cheapest_path(costs)
    return [int(columns[np.searchsorted(rows, row)]) for row in range(len(costs))]


def word_spans(ids: Sequence[int], decode: Callable[[list[int]], str]) -> list[tuple[str, int, int]]:
    """The words of a text and the tokens of each: (word, first, behind the last).

    A token begins a word where the text of all tokens so far shows a space before what it adds; in scripts without
    spaces each token is a word. Tokens that only complete a character or a mark stay with the word before.
    """
    spans: list[tuple[str, int, int]] = []
    before = ""
    first = 0
    for behind in range(1, len(ids) + 1):
        text = decode(list(ids[:behind]))
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            continue  # in the middle of a character
        added = text[len(before) :]
        parts = added.strip()
        if parts:
            begins = not spans or added[0].isspace() or before[-1:].isspace() or stands_alone(parts[0])
            begins = begins or (stands_alone(spans[-1][0][0]) and parts[0].isalnum())
            if begins:
                spans.append((parts, first, behind))
            else:
                word, start, _ = spans[-1]
                spans[-1] = (word + added.rstrip(), start, behind)
        before, first = text, behind
    return spans


def words_of(
    ids: Sequence[int],
    probabilities: Sequence[float],
    costs: NDArray[np.floating],
    decode: Callable[[list[int]], str],
    start: float,
    seconds: float,
) -> tuple[Word, ...]:
    """The words of a chunk.

    Args:
        ids, probabilities: of the n tokens of its text.
        costs: (n or n + 1, frames), of these tokens and of the one that ends the text, if there is one.
        decode: ids to text.
        start, seconds: of the chunk.
    """
    if not ids:
        return ()
    frames = costs.shape[1]
    times = [start + seconds * frame / frames for frame in [*token_starts(costs), frames]]
    return tuple(
        Word(text, times[first], times[behind], float(np.mean(probabilities[first:behind])))
        for text, first, behind in word_spans(ids, decode)
    )
