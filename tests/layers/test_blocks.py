"""The small blocks that models share."""

import pytest
import torch
import torch.nn.functional as F
import transformers.activations
from torch import nn

from fastspeech.layers.activations import _BY_NAME, activation
from fastspeech.layers.attention import attention
from fastspeech.layers.padding import clear_padding_
from fastspeech.layers.residual import add_and_norm


@pytest.mark.parametrize("name", sorted(_BY_NAME))
def test_activations_are_those_of_that_name(name: str) -> None:
    x = torch.linspace(-4, 4, 101)
    torch.testing.assert_close(activation(name)(x), transformers.activations.ACT2FN[name](x))


def test_a_function_is_its_own_activation() -> None:
    assert activation(torch.sin) is torch.sin


def test_unknown_activation() -> None:
    with pytest.raises(ValueError, match="'swosh'; known are gelu"):
        activation("swosh")


@pytest.mark.parametrize("queries", [5, 1])
@pytest.mark.parametrize("kv_heads", [6, 3, 1])
@pytest.mark.parametrize("kind", ["none", "causal", "boolean", "added"])
def test_attention_with_and_without_weights(kind: str, kv_heads: int, queries: int) -> None:
    torch.manual_seed(0)
    keys = 5 if kind == "causal" else 9
    q = torch.randn(2, 6, queries, 20, requires_grad=True)
    k, v = (torch.randn(2, kv_heads, keys, 20, requires_grad=True) for _ in range(2))
    seen = torch.rand(2, 1, queries, keys) > 0.3
    seen[..., 0] = True
    mask = {"boolean": seen, "added": torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)}.get(kind)
    plain, nothing = attention(q, k, v, mask, kind == "causal")
    shown, weights = attention(q, k, v, mask, kind == "causal", with_weights=True)
    assert nothing is None and weights is not None and weights.shape == (2, 6, queries, keys)
    assert plain.shape == (2, queries, 120)
    torch.testing.assert_close(shown, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 6, queries))
    if kind == "causal":
        seen = torch.ones(queries, keys, dtype=torch.bool).tril()
    if kind != "none":
        assert not weights.masked_select(~seen).any()
    found, expected = (torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (shown, plain))
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("queries", [5, 1])
@pytest.mark.parametrize("added", [True, False])
def test_a_query_that_sees_no_key_gives_0(queries: int, added: bool) -> None:
    q, k = torch.randn(2, 3, queries, 8), torch.randn(2, 3, 6, 8)
    seen = torch.tensor([False, True])[:, None, None, None].expand(2, 1, 1, 6)
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf) if added else seen
    out, _ = attention(q, k, k, mask)
    assert not out[0].any()
    torch.testing.assert_close(out[1:], attention(q[1:], k[1:], k[1:])[0])


def test_attention_drops_weights() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 4, 8) for _ in range(3))
    plain, _ = attention(q, k, v)
    for with_weights in (False, True):
        dropped, weights = attention(q, k, v, dropout=0.5, with_weights=with_weights)
        assert not torch.allclose(dropped, plain)
        assert weights is None or torch.allclose(weights.sum(-1), torch.ones(1, 2, 4))


@pytest.mark.parametrize("dim", [1, 2])
def test_padding_is_cleared(dim: int) -> None:
    x = torch.full((3, 5, 6), float("nan")).index_fill(dim, torch.arange(3), 1.0)
    lengths = torch.tensor([3, 1, 0])
    assert clear_padding_(x, lengths, dim) is x
    for row, length in enumerate(lengths.tolist()):
        assert (x[row].narrow(dim - 1, 0, length) == 1).all()
        assert not x[row].narrow(dim - 1, length, x.shape[dim] - length).any()


def test_add_and_norm() -> None:
    x, delta, norm = torch.randn(2, 3, 7), torch.randn(2, 3, 7), nn.LayerNorm(7, eps=0.1)
    nn.init.normal_(norm.weight)
    total, normed = add_and_norm(norm, 0.5)(x, delta)
    torch.testing.assert_close(total, x + 0.5 * delta)
    torch.testing.assert_close(normed, F.layer_norm(x + 0.5 * delta, (7,), norm.weight, norm.bias, 0.1))
