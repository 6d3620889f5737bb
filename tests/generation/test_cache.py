"""DecoderCache: what was appended comes back, whatever was reordered, dropped or grown in between."""

import pytest
import torch

from fastspeech.generation import DecoderCache

LAYERS, INPUTS, HEADS, FRAMES, DIM, BEAMS = 2, 4, 2, 5, 3, 2


def make(capacity: int = 8, lengths: bool = False) -> tuple[DecoderCache, torch.Tensor, torch.Tensor]:
    keys, values = torch.randn(2, LAYERS, INPUTS, HEADS, FRAMES, DIM).unbind()
    cross_lengths = torch.tensor([5, 2, 3, 4]) if lengths else None
    cache = DecoderCache(keys.clone(), values.clone(), capacity, rows_per_input=BEAMS, cross_lengths=cross_lengths)
    return cache, keys, values


def step(cache: DecoderCache, tokens: int = 1) -> torch.Tensor:
    """Append random tokens to every layer; return what came back (layers, 2, rows, heads, length, dim)."""
    back = []
    for layer in range(LAYERS):
        keys, values = torch.randn(2, cache.rows, HEADS, tokens, DIM).unbind()
        all_keys, all_values = cache.append(layer, keys, values)
        assert torch.equal(all_keys[:, :, -tokens:], keys) and torch.equal(all_values[:, :, -tokens:], values)
        back.append(torch.stack((all_keys, all_values)))
    cache.advance(tokens)
    return torch.stack(back)


def test_append_returns_everything_so_far() -> None:
    cache, _, _ = make()
    first = step(cache, 3)
    second = step(cache)
    assert torch.equal(second[..., :3, :], first)
    assert cache.length == cache.get_seq_length() == second.shape[-2] == 4
    assert (cache.inputs, cache.rows, cache.capacity) == (INPUTS, INPUTS * BEAMS, 8)


def test_no_memory_is_taken_within_the_capacity() -> None:
    cache, _, _ = make(capacity=6)
    places = set()
    for _ in range(6):
        step(cache)
        cache.reorder(torch.arange(cache.rows))
        places.add(cache.append(0, *torch.zeros(2, cache.rows, HEADS, 0, DIM))[0].data_ptr())
    assert len(places) == 2 and cache.capacity == 6


def test_growing_keeps_what_is_there() -> None:
    cache, _, _ = make(capacity=2)
    before = step(cache, 2)
    for length in range(3, 12):
        after = step(cache)
        assert torch.equal(after[..., : length - 1, :], before)
        before = after
    assert cache.capacity == 16


def test_reorder_moves_only_self_attention() -> None:
    cache, cross_keys, _ = make()
    before = step(cache, 3)
    rows = torch.tensor([1, 1, 2, 3, 5, 4, 7, 7])
    cache.reorder(rows)
    assert torch.equal(step(cache)[..., :3, :], before[:, :, rows])
    assert torch.equal(torch.stack(cache.cross_keys), cross_keys)


@pytest.mark.parametrize("inputs", [[0, 1], [0, 3, 2], [3], [2, 3, 0, 1]])
@pytest.mark.parametrize("reordered", [False, True])
def test_keep(inputs: list[int], reordered: bool) -> None:
    cache, cross_keys, cross_values = make(lengths=True)
    before = step(cache, 3)
    if reordered:
        cache.reorder(torch.arange(cache.rows))
    cache.keep(inputs)
    rows = [input * BEAMS + beam for input in inputs for beam in range(BEAMS)]
    assert (cache.inputs, cache.rows) == (len(inputs), len(rows))
    assert torch.equal(torch.stack(cache.cross_keys), cross_keys[:, inputs])
    assert torch.equal(torch.stack(cache.cross_values), cross_values[:, inputs])
    assert cache.cross_lengths is not None and cache.cross_lengths.tolist() == [[5, 2, 3, 4][i] for i in inputs]
    after = step(cache)
    assert torch.equal(after[..., :3, :], before[:, :, rows])
    swapped = torch.arange(cache.rows).flip(0)
    cache.reorder(swapped)
    assert torch.equal(step(cache)[..., :4, :], after[:, :, swapped])


def test_gradients_are_refused() -> None:
    cache, _, _ = make()
    keys = torch.randn(cache.rows, HEADS, 1, DIM)
    with pytest.raises(ValueError, match="no gradients"):
        cache.append(0, keys, keys.clone().requires_grad_())
