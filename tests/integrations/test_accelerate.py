"""transformers' models with our encoders and decoders, against themselves."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_models import CASES, FAMILIES, audio, inputs, make, worst, written

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
        if "forward" in vars(module) and hasattr(module, "config"):
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
        assert not own or (name == "kyutai grouped" and transformers.__version__ < "5")  # see KyutaiSpeechToTextModel
        own.clear()
        assert model(**inputs(name, model), output_hidden_states=True)
        assert set(own) == set(report.replaced.values()) - {"Linear"}


@pytest.mark.parametrize("name", FAMILIES)
def test_report(name: str) -> None:
    model = make(name)
    report = fastspeech.accelerate(model, strict=True)
    explained = set()
    for path in (*report.replaced, *report.left):
        explained.add(path)
        if path in report.replaced or not any(o.startswith(path + "." if path else "") for o in report.replaced):
            explained |= {other for other, _ in model.named_modules() if other.startswith(path + ".")}
    assert explained == {path for path, _ in model.named_modules()}
    assert all(report.left.values()) and all(line in str(report) for line in (*report.replaced, *report.left.values()))
    assert fastspeech.accelerate(model) == report


def test_what_is_not_known_is_left_and_strict_raises() -> None:
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
    )
    model = transformers.BertModel(config)
    report = fastspeech.accelerate(model)
    assert not report.replaced and report.left == {"": "BertModel is not known here"}
    with pytest.raises(ValueError, match="BertModel is not known here"):
        fastspeech.accelerate(model, strict=True)
    with pytest.raises(ValueError, match="mode must be"):
        fastspeech.accelerate(model, mode="fast")


def test_what_does_not_fit_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("moonshine")
    kind = type(model.model.encoder)
    monkeypatch.setattr(kind, "forward", lambda self, sound, attention_mask=None: None)
    report = fastspeech.accelerate(model)
    assert "model.encoder" not in report.replaced and "model.decoder" in report.replaced
    assert "its forward takes sound, attention_mask" in report.left["model.encoder"]
    fastspeech.restore(model)
    with pytest.raises(ValueError, match=r"model\.encoder: its forward takes sound"):
        fastspeech.accelerate(model, strict=True)
    assert not any("forward" in vars(module) for module in model.modules())
    monkeypatch.undo()
    model.model.encoder.forward = model.model.encoder.forward
    assert "something else" in fastspeech.accelerate(model).left["model.encoder"]
    fastspeech.restore(model)
    del model.model.encoder.forward
    model.model.decoder.layers[0].mlp.fc1 = torch.nn.Sequential(model.model.decoder.layers[0].mlp.fc1)
    assert "lacks ['layers.0.mlp.fc1.weight'" in fastspeech.accelerate(model).left["model.decoder"]


@pytest.mark.parametrize("name", CASES)
def test_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name)
    given = inputs(name, model)
    if name.startswith("kyutai"):
        labels = given["input_ids"][..., 0] % model.config.vocab_size
    else:
        labels = given["decoder_input_ids"]

    def gradients() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        loss = model(**given, labels=labels).loss
        loss.backward()
        return loss, {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}

    loss, expected = gradients()
    fastspeech.accelerate(model, mode="training")
    own = calls(model, monkeypatch)
    here, found = gradients()
    assert not own and abs(loss - here) <= 1e-5
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert worst(found[key], value) <= 1e-4 * max(1.0, value.abs().max().item()), key
    fastspeech.restore(model)
    again, restored = gradients()
    assert torch.equal(again, loss) and all(torch.equal(restored[key], expected[key]) for key in expected)
    fastspeech.accelerate(model)
    gradients()
    assert own  # with gradients the original runs


@pytest.mark.parametrize("name", FAMILIES)
def test_hooks_checkpointing_and_states_go_through_the_original(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make(name)
    given = inputs(name, model)
    options = {"output_hidden_states": True}
    with torch.no_grad():
        expected = model(**given, **options)
        fastspeech.accelerate(model)
        found = model(**given, **options)
        states = "hidden_states" if name == "kyutai" else "decoder_hidden_states"
        assert all(torch.equal(a, b) for a, b in zip(found[states], expected[states], strict=True))
        seen: list[Any] = []
        layers = model.model.layers if name == "kyutai" else model.model.decoder.layers
        handle = layers[0].register_forward_hook(lambda *_: seen.append(1))
        written(model, **audio(name, model))
        handle.remove()
        assert seen
        count = len(seen)
        written(model, **audio(name, model))
        assert len(seen) == count
    model.train()
    model.gradient_checkpointing_enable()
    report = fastspeech.accelerate(model, mode="training")
    own = calls(model, monkeypatch)
    model(**given).logits.sum().backward()
    assert set(own) == set(report.replaced.values()) - {"Linear"}
    assert all(p.grad is not None for p in layers.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_copies_files_and_new_weights(name: str, tmp_path: Path) -> None:
    model = make(name)
    clips = audio(name, model)
    with torch.no_grad():
        expected = written(model, **clips)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        fastspeech.accelerate(model)
        assert torch.equal(written(model, **clips), expected)
        twin = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.mul_(0.5)
        assert torch.equal(written(twin, **clips), expected)
        changed = written(model, **clips)
        fastspeech.restore(model)
        assert torch.equal(written(model, **clips), changed)
        twin.save_pretrained(tmp_path)
        fresh = type(twin).from_pretrained(tmp_path).state_dict()
        assert all(torch.equal(fresh[key], value) for key, value in state.items())
        # other tensors in place of those it began with, and another dtype
        fastspeech.accelerate(model)
        model.load_state_dict(state, assign=True)
        model.tie_weights()
        assert torch.equal(written(model, **clips), expected)


def test_exchanged_modules_are_noticed() -> None:
    model = make("moonshine")
    given = inputs("moonshine", model)
    fastspeech.accelerate(model)
    layer = model.model.decoder.layers[0].mlp
    layer.fc1 = torch.nn.Sequential(layer.fc1)
    with torch.no_grad():
        layer.fc1[0].weight.zero_()
        with pytest.warns(UserWarning, match="no longer serves MoonshineDecoder: .*fc1"):
            found = model(**given).logits
        fastspeech.restore(model)
        assert torch.equal(model.model.decoder.layers[0].mlp.fc1[0].weight, layer.fc1[0].weight)
        assert worst(model(**given).logits, found) <= 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_autocast_and_compile(name: str) -> None:
    model = make(name)
    given = inputs(name, model)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            expected = model(**given).logits
            fastspeech.accelerate(model)
            found = model(**given).logits
        exact = model(**given).logits
        assert found.dtype == expected.dtype
        assert worst(found, exact) <= 2 * worst(expected, exact)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert worst(compiled(**given).logits, exact) <= 1e-4


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "kyutai"])
def test_masks_and_continued_caches(name: str) -> None:
    """Left-padded tokens, audio masked at its beginning, several tokens behind a cache."""
    model = make(name)
    given = inputs(name, model)
    tokens = given["decoder_input_ids"]
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0
    holes = given | {"attention_mask": given["attention_mask"].clone()}
    whole = given["attention_mask"].shape[1]
    holes["attention_mask"][0, whole // 20 : whole // 8] = 0

    def outputs() -> list[torch.Tensor]:
        masked = model(**given, decoder_attention_mask=mask).logits[mask.bool()]
        first = model(**given | {"decoder_input_ids": tokens[:, :3]}, use_cache=True)
        rest = {"encoder_outputs": (first.encoder_last_hidden_state,), "past_key_values": first.past_key_values}
        if name != "s2t":  # these take the mask of the frames from the record
            rest["encoder_outputs"] = model.model.encoder(
                **{key: value for key, value in given.items() if key != "decoder_input_ids"}
            )
        then = model(**rest, attention_mask=given["attention_mask"], decoder_input_ids=tokens[:, 3:]).logits
        return [masked, first.logits, then, model(**holes).logits]

    with torch.no_grad():
        expected = outputs()
        fastspeech.accelerate(model)
        for a, b in zip(outputs(), expected, strict=True):
            assert worst(a, b) <= 1e-4


def test_what_the_readme_shows(capsys: pytest.CaptureFixture[str]) -> None:
    section = (Path(__file__).parents[2] / "README.md").read_text().partition("## In a transformers model")[2]
    code = section.partition("```python\n")[2].partition("```")[0]
    model = make("moonshine")
    forward = model.model.encoder.forward
    exec(code, {"hf_model": model, "inputs": audio("moonshine", model)})
    assert "replaced model.encoder, a MoonshineEncoder" in capsys.readouterr().out
    assert model.model.encoder.forward == forward


def test_importing_leaves_transformers_alone() -> None:
    lines = (
        "import sys, fastspeech; fastspeech.accelerate, fastspeech.restore; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", lines], check=True)
