"""embed_sum against its definition in loops, and the calls it refuses."""

from typing import Any

import pytest
import torch

from fastspeech.kernels import embed_sum


def test_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    offsets = torch.tensor([0, 4, 7])
    ids = torch.tensor([[[3, 2, 3], [0, 11, 0]], [[11, 11, 11], [2, 0, 1]]])
    found = embed_sum(ids, table, offsets, 11)
    for b in range(2):
        for t in range(2):
            columns = zip(ids[b, t].tolist(), offsets.tolist(), strict=True)
            entries = [token if token == 11 else token + offset for token, offset in columns]
            torch.testing.assert_close(found[b, t], sum(table[entry] for entry in entries))


def test_sums_are_rounded_once() -> None:
    # Added up in bfloat16 each of the small ones would be lost.
    table = torch.cat([torch.full((1, 4), 256.0), torch.full((1, 4), 0.5)]).bfloat16()
    ids = torch.tensor([[0, *[1] * 32]])
    found = embed_sum(ids, table, torch.zeros(33, dtype=torch.int64), -1)
    assert (found == 272).all()


@pytest.mark.parametrize(
    ("change", "kind", "fault"),
    [
        ({"table": torch.zeros(9)}, ValueError, "table must have shape"),
        ({"table": torch.zeros(9, 4, dtype=torch.int64)}, TypeError, "table must be floating"),
        ({"ids": torch.zeros((), dtype=torch.int64)}, ValueError, "ids must have shape"),
        ({"ids": torch.zeros(2, 3)}, TypeError, "ids must be int64"),
        ({"offsets": torch.zeros(2, dtype=torch.int64)}, ValueError, "offsets must have shape"),
        ({"offsets": torch.zeros(3, dtype=torch.int32)}, TypeError, "offsets must be int64"),
        ({"offsets": torch.tensor([0, 3, 9])}, IndexError, "out of range"),
    ],
)
def test_what_is_refused(change: dict[str, Any], kind: type[Exception], fault: str) -> None:
    plain = {"ids": torch.zeros(2, 3, dtype=torch.int64), "table": torch.zeros(9, 4)}
    call = {**plain, "offsets": torch.tensor([0, 3, 6]), "pad_id": 8, **change}
    with pytest.raises(kind, match=fault):
        embed_sum(**call)
