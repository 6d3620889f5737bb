"""Our models over the parameters of transformers' models."""

import copy
from pathlib import Path

import pytest
import torch
import transformers
from hf_models import CASES, FAMILIES, audio, inputs, make, worst, written

import fastspeech
from fastspeech.integrations.shared import tensors


@pytest.mark.parametrize("name", CASES)
def test_same_output_and_neither_disturbs_the_other(name: str) -> None:
    theirs = make(name)
    given, clips = inputs(name, theirs), audio(name, theirs)
    with torch.no_grad():
        logits, text = theirs(**given).logits, written(theirs, **clips)
        ours = fastspeech.from_transformers(theirs)
        assert type(ours).__name__ == type(theirs).__name__ and ours.dtype == theirs.dtype and not ours.training
        spoken = written(ours, **clips)
        # transformers 4 masks the codec's full window wrongly
        assert torch.equal(spoken, text) or ("kyutai" in name and transformers.__version__ < "5")
        mine = ours(**given).logits
        assert worst(mine, logits) <= 1e-4
        # our generate has packed weights by now
        assert torch.equal(theirs(**given).logits, logits)
        assert torch.equal(written(theirs, **clips), text)
        assert torch.equal(ours(**given).logits, mine)
        assert torch.equal(written(ours, **clips), spoken)


@pytest.mark.parametrize("name", CASES)
def test_shares_every_tensor(name: str) -> None:
    theirs = make(name)
    names = list(theirs.state_dict())
    ours = fastspeech.from_transformers(theirs)
    with torch.no_grad():
        written(ours, **audio(name, theirs))
    here, there = tensors(ours), tensors(theirs)
    assert set(ours.state_dict()) <= set(there)
    for key in ours.state_dict():
        assert here[key] is there[key], key
    assert list(theirs.state_dict()) == names
    tied = {key for key in here if any(here[key] is other for name, other in here.items() if name != key)}
    assert tied == {key for key in there if any(there[key] is other for name, other in there.items() if name != key)}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_write_changes_what_the_other_says(name: str) -> None:
    theirs = make(name)
    given = inputs(name, theirs)
    ours = fastspeech.from_transformers(theirs)
    with torch.no_grad():
        before = ours(**given).logits
        for _, parameter in theirs.named_parameters():
            parameter.mul_(0.9)
        assert worst(ours(**given).logits, before) > 1e-3
        assert worst(ours(**given).logits, theirs(**given).logits) <= 1e-4


@pytest.mark.parametrize("name", FAMILIES)
def test_saves_what_it_saved(name: str, tmp_path: Path) -> None:
    theirs = make(name)
    state = {key: value.clone() for key, value in theirs.state_dict().items()}
    ours = fastspeech.from_transformers(theirs)
    with torch.no_grad():
        written(ours, **audio(name, theirs))
    for key, value in copy.deepcopy(theirs).state_dict().items():
        assert torch.equal(value, state[key])
    theirs.save_pretrained(tmp_path)
    again = type(theirs).from_pretrained(tmp_path)
    for key, value in again.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_and_frozen(name: str) -> None:
    theirs = make(name)
    theirs.requires_grad_(False)
    codec = getattr(theirs, "codec_model", None)
    if codec is None:
        theirs.to(torch.bfloat16)
    else:
        theirs.model.to(torch.bfloat16)
        theirs.lm_head.to(torch.bfloat16)
    ours = fastspeech.from_transformers(theirs)
    assert ours.dtype == torch.bfloat16 == ours.config.dtype
    assert not any(parameter.requires_grad for parameter in theirs.parameters())
    if codec is not None:
        theirs.to(torch.bfloat16)
        with pytest.raises(ValueError, match=r"codec_model\.\S+ is torch\.bfloat16, and must be torch\.float32"):
            fastspeech.from_transformers(theirs)


def test_training_goes_on_in_both() -> None:
    theirs = make("moonshine").train()
    ours = fastspeech.from_transformers(theirs)
    assert ours.training
    given = inputs("moonshine", theirs)
    theirs(**given).logits.square().mean().backward()
    expected = {name: parameter.grad.clone() for name, parameter in theirs.named_parameters()}
    theirs.zero_grad()
    ours(**given).logits.square().mean().backward()
    for name, parameter in theirs.named_parameters():
        assert worst(parameter.grad, expected[name]) <= 1e-4 * max(1.0, expected[name].abs().max().item())


def test_takes_the_generation_config_over() -> None:
    theirs = make("moonshine")
    theirs.generation_config.max_length = 9
    theirs.generation_config.num_beams = 3
    ours = fastspeech.from_transformers(theirs)
    assert (ours.generation_config.max_length, ours.generation_config.num_beams) == (9, 3)
    kyutai = make("kyutai")
    kyutai.generation_config.max_new_tokens = 5
    here = fastspeech.from_transformers(kyutai)
    assert here.generation_config.max_new_tokens == 5 and here.generation_config.audio_window_size == 1
    assert here.codec_model.generation_config.use_cache is True


@pytest.mark.parametrize("name", FAMILIES)
def test_bare_model(name: str) -> None:
    theirs = make(name).model
    given = inputs(name, theirs)
    with torch.no_grad():
        ours = fastspeech.from_transformers(theirs)
        assert worst(ours(**given).last_hidden_state, theirs(**given).last_hidden_state) <= 1e-4


def test_refuses_what_it_does_not_know() -> None:
    with pytest.raises(TypeError, match=r"torch\.nn\.modules\.linear\.Linear has no counterpart.*MoonshineModel"):
        fastspeech.from_transformers(torch.nn.Linear(2, 2))
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9
    )
    with pytest.raises(TypeError, match=r"BertModel has no counterpart"):
        fastspeech.from_transformers(transformers.BertModel(config))
    theirs = make("moonshine")
    theirs.model.encoder.layers[0].mlp.fc1 = torch.nn.Sequential(theirs.model.encoder.layers[0].mlp.fc1)
    with pytest.raises(ValueError, match=r"lacks \['model\.encoder\.layers\.0\.mlp\.fc1\.weight"):
        fastspeech.from_transformers(theirs)
    meta = make("moonshine").to("meta")
    with pytest.raises(ValueError, match=r"model\.encoder\.conv1\.weight is on the meta device"):
        fastspeech.from_transformers(meta)
