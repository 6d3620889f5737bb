"""What others have put into a model is not passed over by ours: adapters, quantised weights, hooks, wrappers."""

import io
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from hf_models import FAMILIES, inputs, make, worst
from torch import Tensor, nn

import fastspeech


class Scaled(nn.Linear):
    """The parameters of a linear map, and another result."""

    def forward(self, input: Tensor) -> Tensor:
        return 3 * super().forward(input)


class Adapted(nn.Module):
    """As PEFT wraps a linear map."""

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base_layer.out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return self.base_layer(input) + self.lora_B(self.lora_A(input))


class Quantised(Tensor):
    """As torchao puts quantised weights into plain linear maps."""


def _quantise(model: nn.Module, path: str) -> None:
    linear = model.get_submodule(path)
    coarse = (linear.weight.detach() * 4).round() / 4
    linear.weight = nn.Parameter(coarse.as_subclass(Quantised), requires_grad=False)


def _scale(model: nn.Module, path: str) -> None:
    model.get_submodule(path).__class__ = Scaled


def _replace_forward(model: nn.Module, path: str) -> None:
    linear = model.get_submodule(path)
    linear.forward = lambda input: 3 * nn.Linear.forward(linear, input)


def _parametrise(model: nn.Module, path: str) -> None:
    class Thrice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 3 * weight

    nn.utils.parametrize.register_parametrization(model.get_submodule(path), "weight", Thrice())


def _adapt(model: nn.Module, path: str) -> None:
    model.set_submodule(path, Adapted(model.get_submodule(path)))


def _other_epsilon(model: nn.Module, path: str) -> None:
    norm = next(m for n, m in model.named_modules() if n.startswith(path.partition(".layers")[0]) and hasattr(m, "eps"))
    norm.eps = 1.0


def _other_activation(model: nn.Module, path: str) -> None:
    start = path.partition(".layers")[0]
    name = next(
        n
        for n, m in model.named_modules()
        if n.startswith(start) and type(m).__name__ in ("SiLUActivation", "SiLU", "GELUActivation", "ReLU")
    )
    model.set_submodule(name, nn.Tanh())


CHANGES: dict[str, tuple[Callable[[nn.Module, str], None], str]] = {
    "subclass": (_scale, "Scaled"),
    "adapter": (_adapt, "base_layer|lora_A"),
    "quantised": (_quantise, "Quantised"),
    "forward": (_replace_forward, "something else has replaced the forward of"),
    "parametrised": (_parametrise, "parametrizations"),
    "epsilon": (_other_epsilon, "eps"),
    "activation": (_other_activation, "Tanh"),
}


def served(name: str) -> str:
    return "model" if name == "kyutai" else "model.decoder"


def linear(model: nn.Module, name: str) -> str:
    """The path of a linear map within a layer that is served."""
    start = served(name)
    return next(n for n, m in model.named_modules() if n.startswith(f"{start}.layers") and type(m) is nn.Linear)


def logits(model: Any, name: str) -> Tensor:
    with torch.no_grad():
        return model(**inputs(name, model)).logits


@pytest.mark.parametrize("name", ["moonshine", "kyutai"])
@pytest.mark.parametrize("change", CHANGES)
def test_layers_that_others_changed(name: str, change: str, recwarn: pytest.WarningsRecorder) -> None:
    apply, reason = CHANGES[change]
    model = make(name)
    plain = logits(model, name)
    torch.manual_seed(1)
    apply(model, linear(model, name))
    expected = logits(model, name)
    assert worst(expected, plain) > 1e-3
    report = fastspeech.accelerate(model)
    assert served(name) not in report.replaced
    assert any(word in report.left[served(name)] for word in reason.split("|")), report.left
    assert worst(logits(model, name), expected) <= 1e-4
    fastspeech.restore(model)
    with pytest.raises(ValueError, match=reason):
        fastspeech.accelerate(model, strict=True)
    assert not any(type(vars(m).get("forward")).__module__.startswith("fastspeech") for m in model.modules())
    with pytest.raises(ValueError, match=reason):
        fastspeech.from_transformers(model)


@pytest.mark.parametrize("change", [c for c in CHANGES if c != "epsilon"])
def test_layers_that_others_change_later(change: str, recwarn: pytest.WarningsRecorder) -> None:
    model = make("moonshine")
    plain = logits(model, "moonshine")
    fastspeech.accelerate(model, strict=True)
    assert worst(logits(model, "moonshine"), plain) <= 1e-4
    torch.manual_seed(1)
    CHANGES[change][0](model, linear(model, "moonshine"))
    found = logits(model, "moonshine")
    fastspeech.restore(model)
    assert worst(found, plain) > 1e-3
    assert worst(found, logits(model, "moonshine")) <= 1e-4


def test_classes_that_are_not_transformers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("moonshine")
    encoder = model.model.encoder

    class Louder(type(encoder)):
        def forward(self, input_values: Tensor, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
            return super().forward(2 * input_values, attention_mask, **kwargs)

    encoder.__class__ = Louder
    assert "Louder is not transformers' own" in fastspeech.accelerate(model).left["model.encoder"]
    fastspeech.restore(model)
    encoder.__class__ = Louder.__base__
    mlp = type(model.model.decoder.layers[0].mlp)
    original = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda self, hidden_states: 2 * original(self, hidden_states))
    report = fastspeech.accelerate(model)
    assert "replaced the forward of layers.0.mlp" in report.left["model.decoder"]
    assert "model.encoder" in report.replaced


def test_its_own_forward_set_again_is_no_other() -> None:
    """As the kernels package does to layers that it leaves."""
    model = make("moonshine")
    for part in model.model.encoder.layers.modules():
        part.forward = MethodType(type(part).forward, part)
    assert "model.encoder" in fastspeech.accelerate(model, strict=True).replaced


@pytest.mark.parametrize("name", FAMILIES)
def test_hooks_within_change_what_comes_out(name: str) -> None:
    model = make(name)
    plain = logits(model, name)
    path = linear(model, name)
    changing: dict[str, Callable[[nn.Module], Any]] = {
        "forward": lambda m: m.register_forward_hook(lambda module, args, output: 3 * output),
        "before": lambda m: m.register_forward_pre_hook(lambda module, args: (3 * args[0],)),
        "with names": lambda m: m.register_forward_hook(lambda module, args, names, out: 3 * out, with_kwargs=True),
    }
    for first in (True, False):
        for register in changing.values():
            if not first:
                fastspeech.accelerate(model, strict=True)
            hook = register(model.get_submodule(path))
            expected = logits(model, name)
            if first:
                fastspeech.accelerate(model, strict=True)
            else:
                fastspeech.restore(model)
            assert worst(logits(model, name), expected) <= 1e-4 and worst(expected, plain) > 1e-3
            hook.remove()
            fastspeech.restore(model)


@pytest.mark.parametrize("name", FAMILIES)
def test_hooks_of_gradients(name: str) -> None:
    model = make(name)
    given = inputs(name, model)
    fastspeech.accelerate(model, mode="training", strict=True)
    weight = model.get_submodule(linear(model, name)).weight

    def gradient() -> Tensor:
        model.zero_grad()
        model(**given).logits.square().mean().backward()
        return weight.grad.clone()

    plain = gradient()
    hook = weight.register_hook(lambda grad: 3 * grad)
    assert worst(gradient(), 3 * plain) <= 1e-5 * plain.abs().max().item()
    hook.remove()
    seen: list[Any] = []
    hook = model.get_submodule(linear(model, name)).register_full_backward_hook(lambda *grads: seen.append(grads))
    gradient()
    assert seen
    hook.remove()


@pytest.mark.parametrize("name", FAMILIES)
def test_transforms_of_functions(name: str) -> None:
    model = make(name)
    given = inputs(name, model)
    halves = {key: value.detach() * 0.9 for key, value in model.named_parameters()}

    def outcomes() -> list[Tensor]:
        def loss(parameters: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(model, parameters, (), given, tie_weights=True).logits.square().mean()

        with torch.no_grad():
            value = loss(halves)
        return [value, *torch.func.grad(loss)(halves).values()]

    plain = logits(model, name)
    expected = outcomes()
    fastspeech.accelerate(model, mode="training", strict=True)
    for a, b in zip(outcomes(), expected, strict=True):
        assert worst(a, b) <= 1e-4 * max(1.0, b.abs().max().item())
    assert worst(logits(model, name), plain) <= 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_pickled(name: str) -> None:
    model = make(name)
    plain = logits(model, name)
    fastspeech.accelerate(model, strict=True)
    accelerated = logits(model, name)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(logits(again, name), accelerated)
    fastspeech.restore(again)
    assert torch.equal(logits(again, name), plain)


def test_what_was_put_around_ours_outlives_it() -> None:
    """As libraries that move weights to a device when they are needed do."""
    model = make("moonshine")
    plain = logits(model, "moonshine")
    fastspeech.accelerate(model, strict=True)
    calls: list[str] = []
    head = model.proj_out.forward
    for part in (model.model.decoder, model.proj_out):

        def around(*args: Any, inner: Any = part.forward, **kwargs: Any) -> Any:
            calls.append(type(inner).__name__)
            return inner(*args, **kwargs)

        part.forward = around
    assert worst(logits(model, "moonshine"), plain) <= 1e-4
    head._relaid = None
    with pytest.raises(AttributeError, match="product"):
        logits(model, "moonshine")
    fastspeech.restore(model)
    assert torch.equal(logits(model, "moonshine"), plain)
    assert calls == ["MoonshineDecoder", "Head"] * 3
    report = fastspeech.accelerate(model)
    assert "something else" in report.left["model.decoder"] and "model.encoder" in report.replaced
    assert "another forward" in report.left["proj_out"]


@pytest.mark.parametrize("change", [_scale, _adapt, _quantise, _replace_forward])
@pytest.mark.parametrize("first", [True, False])
def test_heads_that_others_changed(change: Callable[[nn.Module, str], None], first: bool) -> None:
    """One token, as a decoding step has: more than a few are the original's work."""
    model = make("s2t")
    given = {key: value[:1] for key, value in inputs("s2t", model).items()}
    given["decoder_input_ids"] = given["decoder_input_ids"][:, :1]
    torch.manual_seed(1)
    with torch.no_grad():
        plain = model(**given).logits
        if not first:
            fastspeech.accelerate(model, strict=True)
            assert worst(model(**given).logits, plain) <= 1e-4
        change(model, "lm_head")
        if first:
            expected = model(**given).logits
            assert "no plain linear map" in fastspeech.accelerate(model).left["lm_head"]
        found = model(**given).logits
        fastspeech.restore(model)
        assert worst(found, plain) > 1e-3
        assert worst(model(**given).logits, expected if first else found) <= 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_moved_and_cast(name: str) -> None:
    """Parameters that are packed, then cast or without memory for a while; and parameters of several dtypes."""
    model = make(name)
    part = model.get_submodule(served(name))
    state = {key: value.clone() for key, value in part.state_dict().items()}
    buffers = {key: value.clone() for key, value in part.named_buffers()}
    plain = logits(model, name)
    fastspeech.accelerate(model, strict=True)
    assert worst(logits(model, name), plain) <= 1e-4
    part.to("meta")
    part.to_empty(device="cpu")
    part.load_state_dict(state)
    for key, value in part.named_buffers():
        value.copy_(buffers[key])
    getattr(model, "tie_weights", lambda: None)()
    assert worst(logits(model, name), plain) <= 1e-4
    with torch.no_grad():
        assert not part.forward._must_not()
    norm = next(m for m in part.layers.modules() if "Norm" in type(m).__name__)
    norm.double()
    with pytest.warns(UserWarning, match=r"its parameters are torch\.float32 and torch\.float64"), torch.no_grad():
        assert part.forward._must_not()
    norm.float()
    fastspeech.restore(model)
    fastspeech.restore(model)
    assert torch.equal(logits(model, name), plain)
    fastspeech.accelerate(model, strict=True)
    logits(model, name)
    part.to(torch.bfloat16)
    fastspeech.restore(model)
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in part.parameters())
    assert all(torch.equal(value, state[key].bfloat16()) for key, value in part.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())
