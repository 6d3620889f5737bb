"""Loss, gradients and what is left out in training, against transformers."""

from typing import Any

import pytest
import torch
from s2t_pair import ODD, audio, pair, tokens, worst

from fastspeech import Speech2TextForConditionalGeneration

QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def labels() -> torch.Tensor:
    found = tokens(3, 9)
    found[1, 5:] = -100
    return found


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_training(theirs: Any, ours: Any) -> None:
    inputs = audio(ours) | {"labels": labels()}
    inputs["input_features"] = inputs["input_features"].double()
    results = []
    for model in (theirs.double(), ours.double()):
        torch.manual_seed(8)
        loss = model(**inputs).loss
        loss.backward()
        results.append((loss.item(), gradients(model)))
    (expected, other), (found, mine) = results
    assert abs(found - expected) <= 1e-6
    # Keys and values of all layers are one product: those of a layer that is left out get zeros in place of nothing.
    assert other.keys() <= mine.keys()
    assert not any(mine[key].any() for key in mine.keys() - other.keys())
    for key, gradient in other.items():
        # A gradient that is 0 but for rounding (a key's bias shifts all scores of a query alike) has no scale.
        assert worst(mine[key], gradient) <= 1e-5 * max(gradient.abs().max().item(), 1e-3), key


@pytest.mark.parametrize("name", ODD)
def test_loss_and_gradients(name: str) -> None:
    theirs, ours = pair(name)
    assert_same_training(theirs, ours)
    assert len(gradients(ours)) > 40


@pytest.mark.parametrize("name", ODD)
def test_layer_drop_leaves_out_what_transformers_leaves_out(name: str) -> None:
    theirs, ours = pair(name, encoder_layerdrop=0.5, decoder_layerdrop=0.5, **QUIET)
    assert_same_training(theirs.train(), ours.train())
    left_out = dict(ours.named_parameters()).keys() - gradients(ours).keys()
    assert any(".layers." in key for key in left_out)


def test_labels_are_shifted_once() -> None:
    _, ours = pair("untied")
    target = labels()
    found = ours(**audio(ours), labels=target)
    shifted = torch.cat([torch.full((3, 1), 2), target[:, :-1]], 1)
    shifted[shifted == -100] = 1
    logits = ours(**audio(ours), decoder_input_ids=shifted).logits
    assert torch.equal(logits, found.logits)
    kept = target != -100
    chosen = logits.log_softmax(-1)[kept].gather(1, target[kept][:, None])
    assert found.loss.item() == pytest.approx(-chosen.mean().item(), rel=1e-5)


def test_dropouts_act_in_training_only() -> None:
    for field in ("dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop"):
        _, model = pair("deep decoder", **QUIET | {field: 0.5})
        inputs = audio(model) | {"decoder_input_ids": tokens(3, 6)}
        with torch.no_grad():
            model.train()
            results = [model(**inputs).logits for _ in range(8)]
            assert any(worst(results[0], other) > 1e-4 for other in results[1:]), field
            model.eval()
            assert torch.equal(model(**inputs).logits, model(**inputs).logits), field


def test_dropout_drops_where_transformers_drops() -> None:
    """With everything dropped only the residual stream of zeros and the norms' biases are left."""
    theirs, ours = pair("deep decoder", dropout=1.0)
    inputs = audio(ours) | {"decoder_input_ids": tokens(3, 6)}
    with torch.no_grad():
        expected, found = theirs.train()(**inputs), ours.train()(**inputs)
    assert worst(found.logits, expected.logits) <= 1e-5
    assert worst(found.encoder_last_hidden_state, expected.encoder_last_hidden_state) <= 1e-5


def test_a_frozen_encoder_gets_no_gradients() -> None:
    _, ours = pair("untied")
    ours.freeze_encoder()
    ours(**audio(ours), labels=labels()).loss.backward()
    found = gradients(ours)
    assert found and not any(".encoder." in name for name in found)


def test_inference_between_steps_sees_new_weights() -> None:
    _, ours = pair("deep decoder")
    inputs = audio(ours) | {"decoder_input_ids": tokens(3, 6)}
    with torch.no_grad():
        before = ours(**inputs).logits
    optimiser = torch.optim.SGD(ours.parameters(), lr=0.05)
    ours(**audio(ours), labels=labels()).loss.backward()
    optimiser.step()
    with torch.no_grad():
        after = ours(**inputs).logits
    fresh = Speech2TextForConditionalGeneration(ours.config).eval()
    fresh.load_state_dict(ours.state_dict())
    fresh.tie_weights()
    with torch.no_grad():
        assert worst(after, fresh(**inputs).logits) <= 1e-6 < worst(after, before)
