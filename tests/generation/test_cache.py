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
    """Append random tokens to every layer; return what each row now sees (layers, 2, rows, heads, length, dim), in the
    order of its tokens, new ones as they were given."""
    back = []
    new = torch.randn(LAYERS, 2, cache.rows, tokens, HEADS, DIM)
    mask = cache.mask(tokens)
    for layer in range(LAYERS):
        keys, values = new[layer].view(2, cache.owners, -1, HEADS, DIM).transpose(2, 3).unbind()
        back.append(torch.stack(cache.append(layer, keys, values)))
    cache.advance(tokens)
    found = torch.stack(back)
    if mask is None:
        assert torch.equal(found[..., -tokens:, :], new.transpose(3, 4))
        return found
    # The weights that each place would have, were there as many as places: what a row sees, and in which order.
    places = torch.arange(found.shape[4], dtype=torch.float32).expand(*mask.shape)
    order = cache.by_token(places).long()[:, 0]
    for last, order_of_token in enumerate(order.unbind(1), cache.length - tokens + 1):
        seen = mask.unflatten(2, (BEAMS, tokens))[:, 0].flatten(0, 1)[:, last - 1 - cache.length + tokens] == 0
        assert torch.equal(seen.nonzero()[:, 1].view(cache.rows, last), order_of_token[:, :last].sort(1).values)
    owned = found.repeat_interleave(BEAMS, 2).unbind(2)
    rows = torch.stack([row[..., order[i, -1], :] for i, row in enumerate(owned)], 2)
    assert torch.equal(rows[..., -tokens:, :], new.transpose(3, 4))
    return rows


def test_append_returns_everything_so_far() -> None:
    cache, _, _ = make()
    first = step(cache, 3)
    second = step(cache)
    assert torch.equal(second[..., :3, :], first)
    assert cache.length == cache.get_seq_length() == second.shape[-2] == 4
    assert (cache.inputs, cache.rows, cache.owners, cache.capacity) == (INPUTS, INPUTS * BEAMS, INPUTS * BEAMS, 8)


def test_no_memory_is_taken_within_the_capacity() -> None:
    cache, _, _ = make(capacity=6)
    places = set()
    for _ in range(6):
        step(cache)
        places.add(cache.append(0, *torch.zeros(2, cache.owners, HEADS, 0, DIM))[0].data_ptr())
    assert len(places) == 1 and cache.capacity == 6


def test_beams_share_what_they_have_read() -> None:
    """Beams that part only at their last tokens hold the others once, however long they are."""
    cache, _, _ = make(capacity=100)
    before = step(cache, 2)
    memory = set()
    for length in range(3, 101):
        first = torch.arange(cache.rows) // BEAMS * BEAMS
        cache.reorder(first)
        memory.add(cache.append(0, *torch.zeros(2, cache.owners, HEADS, 0, DIM))[0].data_ptr())
        after = step(cache)
        assert torch.equal(after[..., : length - 1, :], before[:, :, first])
        before = after
    held = cache.append(0, *torch.zeros(2, cache.owners, HEADS, 0, DIM))[0].shape[2]
    assert len(memory) == 1 and cache.owners == INPUTS and held <= cache.length + 17 * BEAMS


@pytest.mark.parametrize("lengths", [False, True])
def test_beams_that_go_their_ways(lengths: bool) -> None:
    """Any reordering, several tokens at a time, growth, utterances that leave, and back to memory of their own."""
    cache, _, _ = make(capacity=3, lengths=lengths)
    held = step(cache, 2)
    generator = torch.Generator().manual_seed(0)
    for round_ in range(60):
        beams = torch.randint(BEAMS, (cache.inputs, BEAMS), generator=generator)
        rows = (beams + torch.arange(cache.inputs)[:, None] * BEAMS).flatten()
        cache.reorder(rows)
        held = held[:, :, rows]
        if round_ == 40:
            cache.keep([0, 3, 2])
            held = held.unflatten(2, (INPUTS, BEAMS))[:, :, [0, 3, 2]].flatten(2, 3)
        after = step(cache, 1 + round_ % 3)
        assert torch.equal(after[..., : held.shape[4], :], held)
        held = after
    cache.rewind(50)
    assert torch.equal(step(cache)[..., :50, :], held[..., :50, :])
    cache.separate()
    assert cache.owners == cache.rows and cache.mask(1) is None
    assert torch.equal(step(cache)[..., :50, :], held[..., :50, :])


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
    swapped = torch.arange(cache.rows).view(-1, BEAMS).flip(1).flatten()
    cache.reorder(swapped)
    assert torch.equal(step(cache)[..., :4, :], after[:, :, swapped])


def test_gradients_are_refused() -> None:
    cache, _, _ = make()
    keys = torch.randn(cache.rows, HEADS, 1, DIM)
    with pytest.raises(ValueError, match="no gradients"):
        cache.append(0, keys, keys.clone().requires_grad_())
