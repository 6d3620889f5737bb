"""transformers' models with our encoders and decoders, against themselves."""

from typing import Any

import pytest
import torch
from models import CASES, FAMILIES, audio, inputs, make, worst, written

import fastspeech


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "top_k": 20},
}


def attributes(model: torch.nn.Module) -> dict[str, set[str]]:
    return {name: set(vars(module)) for name, module in model.named_modules()}


@pytest.mark.parametrize("name", CASES)
def test_same_output_before_during_and_after(name: str) -> None:
    model = make(name)
    given, clips = inputs(name, model), audio(name, model)
    ways = {"greedy": {}} if name.startswith("kyutai") else WAYS
    with torch.no_grad():
        before = model(**given).logits
        texts = {way: written(model, **clips, **options) for way, options in ways.items()}
        held, state = attributes(model), {key: value.clone() for key, value in model.state_dict().items()}
        report = fastspeech.accelerate(model, strict=True)
        assert report.replaced
        assert worst(model(**given).logits, before) <= 1e-4
        for way, options in ways.items():
            assert torch.equal(written(model, **clips, **options), texts[way]), way
        fastspeech.restore(model)
        assert attributes(model) == held
        assert torch.equal(model(**given).logits, before)
        for way, options in ways.items():
            assert torch.equal(written(model, **clips, **options), texts[way]), way
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert all(p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())


def calls(model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The classes of replaced modules whose own forward is called from now on, in order."""
    own: list[str] = []
    for module in model.modules():
        if "forward" in vars(module):
            kind, original = type(module), type(module).forward

            def counted(self: Any, *args: Any, original: Any = original, **kwargs: Any) -> Any:
                own.append(type(self).__name__)
                return original(self, *args, **kwargs)

            monkeypatch.setattr(kind, "forward", counted)
    return own


@pytest.mark.parametrize("name", CASES)
def test_ours_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name)
    report = fastspeech.accelerate(model)
    own = calls(model, monkeypatch)
    with torch.no_grad():
        written(model, **audio(name, model))
        model(**inputs(name, model))
        assert not own
        assert model(**inputs(name, model), output_hidden_states=True)
        assert set(own) == set(report.replaced.values())
