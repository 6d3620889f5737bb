"""Loss, gradients and batch statistics against transformers."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from cohere_pair import ODD, audio, pair, settings, tokens, worst

from fastspeech import CohereAsrConfig, CohereAsrForConditionalGeneration


def labels() -> torch.Tensor:
    found = tokens(3, 9)
    found[1, 5:] = -100
    return found


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_loss_gradients_and_running_statistics(name: str, training: bool) -> None:
    theirs, ours = (model.train(training).double() for model in pair(name))
    inputs = audio(ours) | {"labels": labels()}
    inputs["input_features"] = inputs["input_features"].double()
    expected, found = theirs(**inputs), ours(**inputs)
    assert abs(found.loss - expected.loss) <= 1e-6
    expected.loss.backward()
    found.loss.backward()
    mine, other = gradients(ours), gradients(theirs)
    assert mine.keys() == other.keys() and len(mine) > 100
    for key, gradient in other.items():
        # A gradient that is 0 but for rounding (a key's bias shifts all scores of a query alike) has no scale.
        assert worst(mine[key], gradient) <= 1e-5 * max(gradient.abs().max().item(), 1e-3), key
    buffers = dict(theirs.named_buffers())
    before = dict(pair(name)[1].named_buffers())
    for key, buffer in ours.named_buffers():
        assert worst(buffer.float(), buffers[key].float()) <= 1e-5
        assert torch.equal(buffer, before[key]) != training


def test_two_steps_of_an_optimiser_agree() -> None:
    models = pair("three heads")
    losses = []
    for model in models:
        model.train()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(3):
            loss = model(**audio(models[1]), labels=labels()).loss
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            losses.append(model(**audio(models[1]), labels=labels()).loss.item())
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)
    assert losses[1] == pytest.approx(losses[3], rel=1e-4)


def test_labels_are_not_shifted_a_second_time() -> None:
    _, ours = pair("three heads")
    target = labels()
    found = ours(**audio(ours), labels=target)
    start = torch.full((3, 1), ours.config.decoder_start_token_id)
    shifted = torch.cat([start, target[:, :-1]], 1)
    shifted[shifted == -100] = ours.config.pad_token_id
    logits = ours(**audio(ours), decoder_input_ids=shifted).logits
    assert torch.equal(logits, found.logits)
    kept = target != -100
    chosen = logits.log_softmax(-1)[kept].gather(1, target[kept][:, None])
    assert found.loss.item() == pytest.approx(-chosen.mean().item(), rel=1e-5)
    summed = ours(**audio(ours), labels=target, num_items_in_batch=7).loss
    assert summed.item() == pytest.approx(-chosen.sum().item() / 7, rel=1e-5)


def test_dropouts_and_layer_drop_act_in_training_only() -> None:
    values: dict[str, Any] = settings("three heads")
    for where, field in (
        ("encoder", "dropout"),
        ("encoder", "dropout_positions"),
        ("encoder", "activation_dropout"),
        ("encoder", "attention_dropout"),
        ("encoder", "layerdrop"),
        ("decoder", "attention_dropout"),
    ):
        encoder = values["encoder_config"] | {"initializer_range": 0.3}
        changed = values | {"initializer_range": 0.3, "encoder_config": encoder}
        (encoder if where == "encoder" else changed)[field] = 0.5
        torch.manual_seed(0)
        model = CohereAsrForConditionalGeneration(CohereAsrConfig(**changed))
        inputs = audio(model) | {"decoder_input_ids": tokens(3, 6)}
        with torch.no_grad():
            model.train()
            results = [model(**inputs).logits for _ in range(8)]
            assert any(worst(results[0], other) > 1e-4 for other in results[1:]), field
            model.eval()
            assert torch.equal(model(**inputs).logits, model(**inputs).logits), field


def test_a_frozen_encoder_gets_no_gradients() -> None:
    _, ours = pair("three heads")
    ours.freeze_encoder()
    ours(**audio(ours), labels=labels()).loss.backward()
    found = gradients(ours)
    assert found and not any(".encoder." in name for name in found)


def test_inference_between_steps_sees_new_weights() -> None:
    """What is packed, folded and projected for inference follows every way in which training changes weights."""
    _, ours = pair("grouped")
    inputs = audio(ours) | {"decoder_input_ids": tokens(3, 6)}

    def check() -> torch.Tensor:
        ours.eval()
        with torch.no_grad():
            found = ours(**inputs).logits
            cache = ours.start_decoding(inputs, 1, 8)
            stepped = [ours.decode(inputs["decoder_input_ids"][:, i : i + 1], cache) for i in range(6)]
        assert worst(found, ours(**inputs).logits) <= 1e-5
        assert worst(torch.stack(stepped, 1), found) <= 1e-5
        return found

    seen = [check()]
    optimiser = torch.optim.AdamW(ours.parameters(), lr=0.01)
    ours.train()
    ours(**audio(ours), labels=labels()).loss.backward()
    optimiser.step()
    seen.append(check())
    state = {name: tensor * 1.1 for name, tensor in ours.state_dict().items()}
    ours.load_state_dict(state)
    seen.append(check())
    ours.load_state_dict({name: tensor * 0.9 for name, tensor in state.items()}, assign=True)
    seen.append(check())
    for parameter in ours.parameters():
        parameter.data.mul_(1.05)
    seen.append(check())
    ours.double().float()
    for parameter in ours.parameters():
        parameter.data = parameter.data * 0.97
    seen.append(check())
    assert all(worst(a, b) > 1e-3 for a, b in pairwise(seen))


def test_training_after_inference_mode() -> None:
    _, ours = pair("three heads")
    inputs = audio(ours)
    with torch.inference_mode():
        ours.generate(**inputs, max_new_tokens=4)
        ours(**inputs, decoder_input_ids=tokens(3, 3))
    ours.train()
    optimiser = torch.optim.SGD(ours.parameters(), lr=0.1)
    ours(**inputs, labels=labels()).loss.backward()
    optimiser.step()
    assert all(p.grad is not None for p in ours.parameters())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ODD)
def test_autocast(name: str, training: bool) -> None:
    theirs, ours = (model.train(training) for model in pair(name))
    inputs = audio(ours) | {"labels": labels()}
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = theirs(**inputs), ours(**inputs)
        found.loss.backward()
        with torch.no_grad():
            ours(**inputs)
            ours.generate(**audio(ours), max_new_tokens=3)
    assert found.logits.dtype == expected.logits.dtype == torch.bfloat16
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())
    if not training:
        # what was prepared for inference under it is not rounded
        exact = ours(**inputs).logits
        with torch.no_grad():
            assert worst(ours(**inputs).logits, exact) <= 1e-4


def test_clear_errors() -> None:
    _, ours = pair("three heads")
    inputs = audio(ours)
    with pytest.raises(ValueError, match=r"labels \(3, 9\) and decoder inputs \(3, 4\) must agree"):
        ours(**inputs, labels=labels(), decoder_input_ids=tokens(3, 4))
    ours.config.decoder_start_token_id = None
    with pytest.raises(ValueError, match=r"config\.decoder_start_token_id"):
        ours(**inputs, labels=labels())
    with pytest.raises(ValueError, match="no gradients"):
        ours(**inputs, decoder_input_ids=tokens(3, 4), use_cache=True)
