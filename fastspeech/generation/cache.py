"""Where a decoder keeps the keys and values of the tokens it has read and of the audio it listens to."""

import torch
from torch import Tensor

_STEPS_BETWEEN_SWEEPS = 16
"""Tokens that beams which have died take up are read for 8 steps on average, a sweep moves what is left once in 16."""


class DecoderCache:
    """Keys and values of one decoding run, in memory taken once.

    There are `inputs` utterances and `rows_per_input` hypotheses (beams) of each; row = input * rows_per_input + beam.
    Hypotheses of one utterance share its cross-attention keys and values. In self-attention every row first owns the
    memory of its tokens. From the first `reorder` on, when hypotheses go on from one another and most of what they have
    read is the same, the rows of an utterance share its memory too: a token is held once, and a table says at which
    places the tokens of each row lie. `reorder` moves the table alone.

    Args:
        cross_keys, cross_values: (layers, inputs, heads, frames, head_dim), of the encoder's output. Self-attention
            has the same layers, heads, head_dim, dtype and device.
        capacity: the tokens to take memory for; a longer run grows by doubling.
        rows_per_input: hypotheses of each utterance.
        cross_lengths: (inputs,) int64, the valid frames of each utterance; None where all are.

    Attributes:
        cross_keys, cross_values: by layer, (inputs, heads, frames, head_dim).
        cross_lengths: as given.
        length: the tokens that each row has read.
    """

    def __init__(
        self,
        cross_keys: Tensor,
        cross_values: Tensor,
        capacity: int,
        *,
        rows_per_input: int = 1,
        cross_lengths: Tensor | None = None,
    ) -> None:
        layers, inputs, heads, _, head_dim = cross_keys.shape
        self.length = 0
        self.rows_per_input = rows_per_input
        self.cross_lengths = cross_lengths
        self._hold_cross(cross_keys, cross_values)
        rows = inputs * rows_per_input
        self._table: Tensor | None = None  # (rows, length) int64, the place of each token in its utterance's memory
        self._next: Tensor | None = None  # the table with the tokens that are being read
        self._used = 0  # places
        self._sweep_at = 0
        # (layers, owners, heads of keys and then of values, places, head_dim)
        self._hold_self(cross_keys.new_empty(layers, rows, 2 * heads, capacity, head_dim))

    @property
    def inputs(self) -> int:
        """Utterances still held."""
        return self.cross_keys[0].shape[0]

    @property
    def rows(self) -> int:
        """Hypotheses still held: inputs * rows_per_input."""
        return self.inputs * self.rows_per_input

    @property
    def owners(self) -> int:
        """Owners of memory in self-attention: all rows, or the inputs where their rows share it."""
        return self._self.shape[1]

    @property
    def capacity(self) -> int:
        """Places that each owner has."""
        return self._self.shape[3]

    def get_seq_length(self) -> int:
        """`length`, under the name transformers' caches give it."""
        return self.length

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store n further tokens of every row in one layer, given as (owners, heads, tokens, head_dim): tokens is n,
        or rows_per_input * n, row by row, where the owners are the inputs.

        Returns all keys and values that the owners have, up to these: views that later calls leave as they are until
        `reorder` or `keep`. Where rows share memory, `mask` says what each sees. `length` grows only by `advance`,
        once all layers have appended.
        """
        if keys.requires_grad or values.requires_grad:
            raise ValueError("DecoderCache holds no gradients: run under torch.no_grad(), or without a cache")
        end = self._used + keys.shape[2]
        if end > self.capacity:
            self._grow(max(end, 2 * self.capacity))
        if (self._used, end) != self._viewed:
            self._view(end)
        self._new_keys[layer].copy_(keys)
        self._new_values[layer].copy_(values)
        return self._keys[layer], self._values[layer]

    def mask(self, tokens: int) -> Tensor | None:
        """What is added to the scores of `tokens` further tokens of every row, (inputs, 1, rows_per_input * tokens,
        places with theirs); None where each row owns its memory."""
        if self._table is None:
            return None
        self._next = table = self._longer(tokens)
        end = self._used + self.rows_per_input * tokens
        mask = self._self.new_full((self.rows, tokens, end), -torch.inf)
        # A token sees those before it and itself.
        seen = mask.new_zeros(table.shape[1]) if tokens == 1 else mask[0, :, : table.shape[1]].triu(self.length + 1)
        mask.scatter_(2, table[:, None].expand(-1, tokens, -1), seen.expand(self.rows, tokens, -1))
        return mask.view(self.inputs, 1, -1, end)

    def by_token(self, weights: Tensor) -> Tensor:
        """Attention weights (owners, heads, queries, places) as (rows, heads, n, tokens), n the queries of each row,
        which `advance` has counted."""
        if self._table is None:
            return weights
        weights = weights.unflatten(2, (self.rows_per_input, -1)).transpose(1, 2).flatten(0, 1)
        return weights.gather(3, self._table[:, None, None].expand(-1, *weights.shape[1:3], -1))

    def advance(self, tokens: int) -> None:
        """Count `tokens` of every row as stored, after every layer has appended them."""
        self.length += tokens
        if self._table is None:
            self._used = self.length
            return
        self._table, self._next = self._longer(tokens) if self._next is None else self._next, None
        self._used += self.rows_per_input * tokens

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.length = length
        if self._table is None:
            self._used = length
        else:
            self._table = self._table[:, :length]

    def reorder(self, rows: Tensor) -> None:
        """Let row i continue row rows[i]: (rows,) int64, each within its own utterance."""
        if self.rows_per_input == 1:
            return
        if self._table is None:
            self._share()
        self._table = self._places().index_select(0, rows)
        if self._used >= self._sweep_at:
            self._sweep()

    def keep(self, inputs: list[int]) -> None:
        """Hold only these utterances, in this order. Only those whose place changes are moved."""
        by_input = self._self.unflatten(1, (self.inputs, -1)).narrow(4, 0, self._used)
        moves = [(source, target) for target, source in enumerate(inputs) if source != target]
        if moves:
            source, target = torch.tensor(moves, device=self._self.device).T
            for cross in self._cross:
                cross.index_copy_(1, target, cross.index_select(1, source))
            by_input.index_copy_(1, target, by_input.index_select(1, source))
        if self.cross_lengths is not None:
            self.cross_lengths = self.cross_lengths[inputs]
        if self._table is not None:
            self._table = self._table.unflatten(0, (self.inputs, -1))[inputs].flatten(0, 1)
        owners = len(inputs) * by_input.shape[2]
        self._hold_cross(*(cross[:, : len(inputs)] for cross in self._cross))
        self._hold_self(self._self[:, :owners])

    def separate(self) -> None:
        """Give every row memory of its own again, its tokens in their order."""
        if self._table is None:
            return
        table, self._table = self._table, None
        owned = zip(table.unflatten(0, (self.inputs, -1)), self._self.unbind(1), strict=True)
        rows = [held.index_select(2, places) for beams, held in owned for places in beams]
        self._used = self.length
        self._hold_self(torch.stack(rows, 1))

    def _share(self) -> None:
        """Put the rows of each utterance side by side in one memory."""
        inputs, beams = self.inputs, self.rows_per_input
        held = self._self[..., : self.length, :].unflatten(1, (inputs, beams)).transpose(2, 3).flatten(3, 4)
        capacity = max(self.capacity, beams * self.length) + _STEPS_BETWEEN_SWEEPS * beams
        self._table = torch.arange(beams * self.length, device=held.device).view(beams, -1).repeat(inputs, 1)
        self._used = beams * self.length
        self._hold_self(held.new_empty((*held.shape[:3], capacity, held.shape[4])))
        self._self[..., : self._used, :] = held

    def _sweep(self) -> None:
        """Close up the places that no row refers to."""
        table = self._places().view(self.inputs, -1)
        alive = table.new_zeros(self.inputs, self._used, dtype=torch.bool).scatter_(1, table, True)
        self._table = (alive.cumsum(1) - 1).gather(1, table).view(self.rows, -1)
        most = int(alive.sum(1).max())
        sources = alive.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
        for held, source in zip(self._self.unbind(1), sources, strict=True):
            held[:, :, :most] = held.index_select(2, source)
        self._used = most
        self._sweep_at = most + _STEPS_BETWEEN_SWEEPS * self.rows_per_input
        self._viewed = (-1, -1)

    def _longer(self, tokens: int) -> Tensor:
        """The table with `tokens` further tokens of every row."""
        end = self._used + self.rows_per_input * tokens
        new = torch.arange(self._used, end, device=self._self.device).view(self.rows_per_input, tokens)
        return torch.cat((self._places(), new.repeat(self.inputs, 1)), 1)

    def _places(self) -> Tensor:
        assert self._table is not None
        return self._table

    def _grow(self, capacity: int) -> None:
        held = self._self[..., : self._used, :]
        self._hold_self(held.new_empty((*held.shape[:3], capacity, held.shape[4])))
        self._self[..., : self._used, :] = held

    # Views of each layer are made for all layers at once, for a step needs four of them a layer.

    def _hold_cross(self, keys: Tensor, values: Tensor) -> None:
        self._cross = (keys, values)
        self.cross_keys, self.cross_values = list(keys.unbind(0)), list(values.unbind(0))

    def _hold_self(self, memory: Tensor) -> None:
        self._self = memory
        self._viewed = (-1, -1)

    def _view(self, end: int) -> None:
        keys, values = self._self.narrow(3, 0, end).chunk(2, 2)
        self._keys, self._values = keys.unbind(0), values.unbind(0)
        new_keys, new_values = (side.narrow(3, self._used, end - self._used) for side in (keys, values))
        self._new_keys, self._new_values = new_keys.unbind(0), new_values.unbind(0)
        self._viewed = (self._used, end)
