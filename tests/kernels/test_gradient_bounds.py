"""The arithmetic by which an op gets a fused backward."""

import pytest
import torch

from fastspeech.bench import gradients
from fastspeech.kernels.spec import load_spec


def test_bytes_are_those_counted_by_hand() -> None:
    spec = load_spec("residual_layer_norm")
    case = next(case for case in spec.cases if case.name == "cohere 35 s")
    found = gradients.row(spec, case)
    value = 1e6 * torch.Size(case.shape["shape"]).numel() * 2 / gradients.BANDWIDTH
    # Sum: two read, one written. Norm: one read, one written. Beside these only weights and statistics of rows.
    assert found.reference == pytest.approx(5 * value, rel=0.01)
    assert found.forward == pytest.approx(4 * value, rel=0.01)
    # Inputs and the gradients of outputs read, those of inputs written.
    assert found.backward == pytest.approx(6 * value, rel=0.01)
    assert found.recomputed > 2 * found.reference


def test_what_is_trained_has_a_fused_backward_where_it_is_worth_it() -> None:
    rows = gradients.rows()
    assert all(row.fused == (row.ratio > gradients.MOST) for row in rows)
