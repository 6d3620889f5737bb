"""attn_implementation="fastspeech", through transformers' attention interface."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from hf_models import CASES, audio, inputs, make, worst, written

from fastspeech.integrations.transformers import _attention, register


@pytest.mark.parametrize("name", CASES)
def test_same_output(name: str) -> None:
    register()
    model = make(name)
    given, clips = inputs(name, model), audio(name, model)
    with torch.no_grad():
        before, text = model(**given).logits, written(model, **clips)
        model.set_attn_implementation("fastspeech")
        if model.config._attn_implementation != "fastspeech":
            pytest.skip("this version of transformers chooses this model's attention by class")
        assert worst(model(**given).logits, before) <= 1e-4
        assert torch.equal(written(model, **clips), text)


def test_any_other_model() -> None:
    register()
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = transformers.LlamaModel(transformers.LlamaConfig(**sizes, intermediate_size=24, vocab_size=20)).eval()
    tokens = torch.randint(0, 20, (2, 7))
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    for given in ({}, {"attention_mask": mask}):
        model.set_attn_implementation("eager")
        expected = model(tokens, **given).last_hidden_state
        model.set_attn_implementation("fastspeech")
        found = model(tokens, **given).last_hidden_state
        valid = mask.bool() if given else torch.ones_like(mask).bool()
        assert worst(found[valid], expected[valid]) <= 1e-5
    expected.sum().backward()


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("kind", ["causal", "full", "boolean", "added", "weights"])
def test_against_the_formula(kind: str, scaling: float | None) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 4, 5, 6), torch.randn(2, 2, 5, 6), torch.randn(2, 2, 5, 6)
    seen = torch.rand(2, 1, 5, 5) < 0.6
    seen |= torch.eye(5, dtype=torch.bool)
    mask = {"boolean": seen, "added": torch.zeros(2, 1, 5, 5).masked_fill(~seen, -torch.inf)}.get(kind)
    module = SimpleNamespace(is_causal=kind == "causal")
    out, weights = _attention(module, q, k, v, mask, scaling=scaling, output_attentions=kind == "weights")
    wide_k, wide_v = (side.double().repeat_interleave(2, 1) for side in (k, v))
    scores = q.double() @ wide_k.transpose(2, 3) * (6**-0.5 if scaling is None else scaling)
    if kind == "causal":
        scores = scores.masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    expected = scores.softmax(-1) @ wide_v
    assert worst(out.transpose(1, 2).double(), expected) <= 1e-6
    assert (weights is not None) == (kind == "weights")
    if weights is not None:
        assert worst(weights.double(), scores.softmax(-1)) <= 1e-6


def test_says_what_it_cannot() -> None:
    q = torch.randn(1, 1, 2, 4)
    with pytest.raises(ValueError, match="knows no softcap"):
        _attention(SimpleNamespace(is_causal=True), q, q, q, None, softcap=3.0)
