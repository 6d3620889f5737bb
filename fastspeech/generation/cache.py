"""Where a decoder keeps the keys and values of the tokens it has read and of the audio it listens to."""

import torch


class DecoderCache:
    """Keys and values of one decoding run, in memory taken once.

    There are `inputs` utterances and `rows_per_input` hypotheses (beams) of each; row = input * rows_per_input + beam.
    Hypotheses of one utterance share its cross-attention keys and values.

    Args:
        cross_keys, cross_values: (layers, inputs, heads, frames, head_dim), of the encoder's output. Self-attention
            has the same layers, heads, head_dim, dtype and device.
        capacity: the tokens to take memory for; a longer run grows by doubling.
        rows_per_input: hypotheses of each utterance.
        cross_lengths: (inputs,) int64, the valid frames of each utterance; None where all are.

    Attributes:
        cross_keys, cross_values: by layer, (inputs, heads, frames, head_dim).
        cross_lengths: as given.
        length: the tokens stored.
    """

    def __init__(
        self,
        cross_keys: torch.Tensor,
        cross_values: torch.Tensor,
        capacity: int,
        *,
        rows_per_input: int = 1,
        cross_lengths: torch.Tensor | None = None,
    ) -> None:
        layers, inputs, heads, _, head_dim = cross_keys.shape
        self.length = 0
        self.rows_per_input = rows_per_input
        self.cross_lengths = cross_lengths
        self._spare: torch.Tensor | None = None
        self._hold_cross(cross_keys, cross_values)
        self._hold_self(cross_keys.new_empty(2, layers, inputs * rows_per_input, heads, capacity, head_dim))

    @property
    def inputs(self) -> int:
        """Utterances still held."""
        return self.rows // self.rows_per_input

    @property
    def rows(self) -> int:
        """Hypotheses still held: inputs * rows_per_input."""
        return self._self.shape[2]

    @property
    def capacity(self) -> int:
        """Tokens there is memory for."""
        return self._self.shape[4]

    def get_seq_length(self) -> int:
        """`length`, under the name transformers' caches give it."""
        return self.length

    def append(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Store n further tokens of one layer, given and returned as (rows, heads, tokens, head_dim).

        Returns all keys and values of the layer up to these tokens: views that later calls leave as they are until
        `reorder` or `keep`. `length` grows only by `advance`, once all layers have appended.
        """
        if keys.requires_grad or values.requires_grad:
            raise ValueError("DecoderCache holds no gradients: run under torch.no_grad(), or without a cache")
        end = self.length + keys.shape[2]
        if end > self.capacity:
            self._grow(max(end, 2 * self.capacity))
        all_keys = self._keys[layer].narrow(2, 0, end)
        all_values = self._values[layer].narrow(2, 0, end)
        all_keys.narrow(2, self.length, keys.shape[2]).copy_(keys)
        all_values.narrow(2, self.length, keys.shape[2]).copy_(values)
        return all_keys, all_values

    def advance(self, tokens: int) -> None:
        """Count `tokens` as stored, after every layer has appended them."""
        self.length += tokens

    def rewind(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        self.length = length

    def reorder(self, rows: torch.Tensor) -> None:
        """Let row i continue row rows[i]: (rows,) int64, each within its own utterance."""
        if self._spare is None:
            self._spare = torch.empty_like(self._self)
        source = self._self.narrow(4, 0, self.length)
        torch.index_select(source, 2, rows, out=self._spare.narrow(4, 0, self.length))
        reordered, self._spare = self._spare, self._self
        self._hold_self(reordered)

    def keep(self, inputs: list[int]) -> None:
        """Hold only these utterances, in this order. Only those whose place changes are moved."""
        moves = [(source, target) for target, source in enumerate(inputs) if source != target]
        if moves:
            source, target = torch.tensor(moves, device=self._self.device).T
            for cross in self._cross:
                cross.index_copy_(1, target, cross.index_select(1, source))
            by_input = self._self.unflatten(2, (-1, self.rows_per_input)).narrow(5, 0, self.length)
            by_input.index_copy_(2, target, by_input.index_select(2, source))
        if self.cross_lengths is not None:
            self.cross_lengths = self.cross_lengths[inputs]
        rows = len(inputs) * self.rows_per_input
        self._hold_cross(*(cross[:, : len(inputs)] for cross in self._cross))
        self._hold_self(self._self[:, :, :rows])
        self._spare = None if self._spare is None else self._spare[:, :, :rows]

    def _grow(self, capacity: int) -> None:
        shape = list(self._self.shape)
        shape[4] = capacity
        grown = self._self.new_empty(shape)
        grown.narrow(4, 0, self.length).copy_(self._self.narrow(4, 0, self.length))
        self._spare = None
        self._hold_self(grown)

    # Views of each layer are made where the memory changes, for a step needs four of them a layer.

    def _hold_cross(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._cross = (keys, values)
        self.cross_keys, self.cross_values = list(keys.unbind(0)), list(values.unbind(0))

    def _hold_self(self, both: torch.Tensor) -> None:
        self._self = both
        self._keys, self._values = (side.unbind(0) for side in both.unbind(0))
