"""What inference derives from parameters: kept while it is right, made anew when it is not, in nobody's way."""

import copy
import pickle
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastspeech.kernels import use_backend
from fastspeech.layers import derived as derived_weights
from fastspeech.layers.derived import Derived, DerivingModule
from fastspeech.layers.linear import PackedLinear, direct
from fastspeech.layers.relaid import Relaid

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")


class Twice(DerivingModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.kept = Derived()
        self.made = 0

    def forward(self) -> torch.Tensor:
        return self.kept.get((self.weight,), self._make)

    def _make(self) -> torch.Tensor:
        self.made += 1
        return self.weight * 2


def test_a_value_is_made_once() -> None:
    module = Twice()
    assert module() is module() and module.made == 1
    assert not module().requires_grad
    assert list(module.state_dict()) == ["weight"]


def test_writes_are_seen() -> None:
    module = Twice()
    module()
    optimiser = torch.optim.SGD(module.parameters(), lr=1.0)
    (module.weight * torch.arange(3.0)).sum().backward()
    optimiser.step()
    assert module().tolist() == [2.0, 0.0, -2.0]
    module.load_state_dict({"weight": torch.full((3,), 5.0)})
    assert module().tolist() == [10.0] * 3
    module.load_state_dict({"weight": torch.full((3,), 6.0)}, assign=True)
    assert module().tolist() == [12.0] * 3
    module.weight = nn.Parameter(torch.full((3,), 7.0))
    assert module().tolist() == [14.0] * 3
    module.weight.data = torch.full((3,), 8.0)
    assert module().tolist() == [16.0] * 3
    module.weight.data.fill_(9.0)
    module.eval()
    assert module().tolist() == [18.0] * 3
    assert module.half()().dtype == torch.float16


def test_memory_that_was_given_out_again_is_no_match() -> None:
    kept = Derived()
    for value in range(20):
        source = torch.full((64,), float(value))
        assert kept.get((source,), lambda source=source: source.sum().item()) == 64.0 * value
        del source


def test_a_value_is_of_its_own_sources_whoever_asks_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other, derived = torch.ones(2), torch.ones(3), Derived()
    look = derived_weights.seen

    def interrupted(source: torch.Tensor) -> Any:
        monkeypatch.setattr(derived_weights, "seen", look)
        assert len(derived.get((other,), other.clone)) == 3  # as another thread does
        return look(source)

    monkeypatch.setattr(derived_weights, "seen", interrupted)
    assert len(derived.get((mine,), mine.clone)) == 2
    assert len(derived.get((other,), other.clone)) == 3


def test_inference_mode_leaves_values_that_serve_outside() -> None:
    module = Twice()
    with torch.inference_mode():
        module()
    assert not module().is_inference()


def maps(bias: bool = True) -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(5, width, bias) for name, width in (("q", 4), ("k", 3), ("v", 2))})


@pytest.mark.parametrize("bias", [True, False])
def test_packed_maps_share_their_memory(bias: bool) -> None:
    module, packed, x = maps(bias), PackedLinear(), torch.randn(7, 5)
    expected = torch.cat([linear(x) for linear in module.values()], -1)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        found = packed.function(list(module.values()))(x)
    torch.testing.assert_close(found, expected)
    assert len({p.untyped_storage().data_ptr() for p in module.parameters() if p.dim() == 2}) == 1
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    # with gradients, the parameters still get theirs
    packed.function(list(module.values()))(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_packed_maps_follow_writes_and_moves() -> None:
    module, packed, x = maps(), PackedLinear(), torch.randn(7, 5)

    def check() -> None:
        linears = list(module.values())
        with torch.no_grad():
            torch.testing.assert_close(packed.function(linears)(x), torch.cat([linear(x) for linear in linears], -1))

    check()
    memory = module["q"].weight.data_ptr()
    check()
    assert module["q"].weight.data_ptr() == memory, "packed a second time"
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1)
    sum(linear(x).square().sum() for linear in module.values()).backward()
    optimiser.step()
    check()
    module["k"].weight.data.mul_(2)
    check()
    assert module["q"].weight.data_ptr() == memory
    module["v"].weight.data = module["v"].weight.data * 3
    check()
    module.load_state_dict({name: tensor + 1 for name, tensor in module.state_dict().items()}, assign=True)
    check()
    module["k"] = nn.Linear(5, 6)
    check()
    module.double().float()
    check()


def test_something_else_in_a_maps_place_is_called() -> None:
    class Adapted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    plain, adapted, x = nn.Linear(5, 4), Adapted(5, 4), torch.randn(2, 5)
    with torch.no_grad():
        assert torch.equal(PackedLinear().function([plain, adapted])(x), torch.cat([plain(x), adapted(x)], -1))
        assert torch.equal(direct(adapted)(x), adapted(x))
        assert torch.equal(direct(plain)(x), plain(x))


def test_copies_pickles_and_files_of_packed_maps(tmp_path: object) -> None:
    class Layer(DerivingModule):
        def __init__(self) -> None:
            super().__init__()
            self.maps = maps()
            self.packed = PackedLinear()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.packed.function(list(self.maps.values()))(x)

    layer, x = Layer(), torch.randn(7, 5)
    with torch.no_grad():
        expected = layer(x)
        twin = copy.deepcopy(layer)
        for parameter in twin.parameters():
            parameter.mul_(2)
        assert torch.equal(layer(x), expected) and not torch.equal(twin(x), expected)
    assert isinstance(pickle.loads(pickle.dumps(layer.packed)), PackedLinear)
    save_file(layer.state_dict(), f"{tmp_path}/weights.safetensors")


@needs_onednn
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_relaid_maps_give_the_same_numbers(rows: int, bias: bool, backend: str) -> None:
    module, relaid = maps(bias), Relaid()
    linears = list(module.values())
    with torch.no_grad(), use_backend(backend):
        function = relaid.product(rows)(*linears)
        one = relaid.product(rows)(linears[0])
        for shape in ((rows,), (rows, 1), (1, rows), (3, 4)):
            x = torch.randn(*shape, 5)
            torch.testing.assert_close(function(x), torch.cat([linear(x) for linear in linears], -1))
            torch.testing.assert_close(one(x), linears[0](x))


@needs_onednn
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_relaid_maps_follow_writes(rows: int, backend: str) -> None:
    class Layer(DerivingModule):
        def __init__(self) -> None:
            super().__init__()
            self.maps, self.relaid = maps(), Relaid()

    layer, x = Layer(), torch.randn(rows, 5)

    def check() -> None:
        linears = list(layer.maps.values())
        with torch.no_grad(), use_backend(backend):
            found = layer.relaid.product(rows)(*linears)(x)
            torch.testing.assert_close(found, torch.cat([linear(x) for linear in linears], -1))

    check()
    with torch.no_grad():
        layer.maps["k"].weight.mul_(2)
        layer.maps["v"].bias.add_(1)
    check()
    layer.maps["q"].weight.data.mul_(3)
    layer.eval()
    check()
    layer.maps["k"] = nn.Linear(5, 6)
    check()
    assert isinstance(copy.deepcopy(layer).relaid, Relaid) and len(layer.state_dict()) == 6


@needs_onednn
def test_something_else_in_a_relaid_maps_place_is_called() -> None:
    class Adapted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    plain, adapted, x = nn.Linear(5, 4), Adapted(5, 4), torch.randn(2, 5)
    with torch.no_grad():
        product = Relaid().product(1)
        assert torch.equal(product(adapted)(x), adapted(x))
        assert torch.equal(product(plain, adapted)(x), torch.cat([plain(x), adapted(x)], -1))
