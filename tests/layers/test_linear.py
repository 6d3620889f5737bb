"""Products through oneDNN: the same numbers as PyTorch's own, for every layout, and only where they are worth it."""

import pytest
import torch
import torch.nn.functional as F

from fastspeech.kernels.onednn import WORTHWHILE, linear
from fastspeech.layers.linear import direct
from fastspeech.layers.relaid import blocked

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [(3,), (2, 700), (1, 5, 300)])
def test_numbers_are_pytorchs(rows: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(96, 130, bias)
    x = torch.randn(*rows, 96)
    wide = torch.randn(*rows, 2 * 96)
    with torch.no_grad():
        for given in (x, wide[..., ::2], wide[..., :96], x.transpose(0, -1).contiguous().transpose(0, -1)):
            expected = F.linear(
                given.double(), module.weight.double(), None if module.bias is None else module.bias.double()
            )
            for found in (linear(given, module.weight, module.bias), direct(module)(given)):
                assert found.shape == expected.shape
                assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_copy_in_blocks_gives_the_same(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(130, 96, dtype=dtype), torch.randn(130, dtype=dtype)
    for rows in (1, 2, 70):
        x = torch.randn(2, rows, 96, dtype=dtype)
        for given in (None, bias):
            expected = F.linear(x.double(), weight.double(), None if given is None else given.double())
            assert (blocked(weight, given)(x) - expected).abs().max() <= 1e-4


@needs_onednn
def test_large_float32_products_alone_go_through_onednn() -> None:
    weight = torch.randn(256, 128)
    rows = WORTHWHILE // weight.numel()
    with torch.no_grad():
        assert _calls(torch.randn(rows, 128), weight) == ["mkldnn::_linear_pointwise"]
        assert _calls(torch.randn(rows - 1, 128), weight) == []
        assert _calls(torch.randn(rows, 128).double(), weight.double()) == []
        with torch.autocast("cpu", torch.bfloat16):
            assert _calls(torch.randn(rows, 128), weight) == []


def _calls(x: torch.Tensor, weight: torch.Tensor) -> list[str]:
    """The operators of oneDNN that a product calls by name."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        linear(x, weight)
    return [event.name for event in profile.events() if event.name == "mkldnn::_linear_pointwise"]
