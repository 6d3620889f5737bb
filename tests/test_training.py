"""Training of our models beside plain float32: under bfloat16 autocast, and with activations computed again."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny_cohere
import tiny_kyutai
import tiny_moonshine
import tiny_speech_to_text
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fastspeech.kernels import dispatch, use_backend

MODELS: dict[str, Callable[[], Any]] = {
    "cohere_asr": tiny_cohere.model,
    "kyutai_stt": tiny_kyutai.model,
    "moonshine": tiny_moonshine.model,
    "speech_to_text": tiny_speech_to_text.model,
}
each_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(params=["inline", "ops"], autouse=True)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The two ways in which a CPU call reaches an op's reference: inline, and as a registered op with its autograd."""
    if request.param == "inline":
        yield
    else:
        monkeypatch.setattr(dispatch, "choose_inline", lambda op, args: False)
        with use_backend("reference"):
            yield


def inputs(name: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if name == "kyutai_stt":
        ids = torch.randint(16, (2, 7, 9), generator=generator)
        return {"input_ids": ids, "labels": ids[..., 0]}
    if name == "moonshine":
        heard = {"input_values": torch.randn(2, 3000, generator=generator)}
    else:
        width = 16 if name == "cohere_asr" else 80
        heard = {"input_features": torch.randn(2, 40, width, generator=generator)}
    (tensor,) = heard.values()
    mask = torch.ones(tensor.shape[:2], dtype=torch.int64)
    mask[1, tensor.shape[1] * 2 // 3 :] = 0
    return {**heard, "attention_mask": mask, "labels": torch.tensor([[7, 8, 9], [8, 9, -100]])}


def gradients(model: Any, run: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradients by parameter."""
    model.zero_grad()
    loss = run()
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@each_model
def test_autocast(name: str) -> None:
    model, given = MODELS[name](), inputs(name)
    loss, plain = gradients(model, lambda: model(**given).loss)

    def narrow() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            found = model(**given).loss
        assert found.dtype == torch.float32
        return found

    narrower, found = gradients(model, narrow)
    assert abs(narrower - loss) <= 0.05 * loss
    assert found.keys() == plain.keys()
    whole, same = (torch.cat([grads[n].flatten() for n in plain]) for grads in (found, plain))
    assert whole.dtype == torch.float32
    # bfloat16 has 8 bits, and errors of layers add up.
    assert (whole - same).norm() <= 0.1 * same.norm()


@each_model
def test_activations_computed_again(name: str) -> None:
    """`torch.utils.checkpoint`: what it recomputes is what was computed, to the last bit."""
    model, given = MODELS[name](), inputs(name)
    loss, plain = gradients(model, lambda: model(**given).loss)
    again, found = gradients(model, lambda: checkpoint(lambda: model(**given).loss, use_reentrant=False))
    assert again == loss
    assert found.keys() == plain.keys()
    for parameter, grad in plain.items():
        assert torch.equal(found[parameter], grad), parameter
