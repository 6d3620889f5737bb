"""Our models as graphs, by `torch.compile(fullgraph=True)` and `torch.export`: encoders, steps and training."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tiny_cohere
import tiny_kyutai
import tiny_moonshine
import tiny_speech_to_text
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from fastspeech.kernels import dispatch, use_backend
from fastspeech.models.kyutai_stt.mimi import MimiState

MODELS: dict[str, Callable[[], Any]] = {
    "cohere_asr": tiny_cohere.model,
    "moonshine": tiny_moonshine.model,
    "speech_to_text": tiny_speech_to_text.model,
}
each_model = pytest.mark.parametrize("name", MODELS)
DYNAMIC = torch.export.Dim.DYNAMIC


@pytest.fixture(params=[pytest.param("inline", marks=pytest.mark.slow), "ops"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """What a graph holds of an op: what it is on a CPU, the operations of its reference; or itself, as on a GPU."""
    torch._dynamo.reset()
    if request.param == "inline":
        yield request.param
    else:
        monkeypatch.setattr(dispatch, "choose_inline", lambda op, args: False)
        with use_backend("reference"):
            yield request.param


def audio(name: str, rows: int, extra: int) -> tuple[Tensor, Tensor]:
    """What the encoder of a model hears, and its mask, in which one row is short; longer by `extra` frames."""
    generator = torch.Generator().manual_seed(rows)
    if name == "moonshine":
        heard = torch.randn(rows, 3000 + 384 * extra, generator=generator)
    else:
        heard = torch.randn(rows, 40 + 8 * extra, 16 if name == "cohere_asr" else 80, generator=generator)
    mask = torch.ones(heard.shape[:2], dtype=torch.int64)
    mask[1, heard.shape[1] * 2 // 3 :] = 0
    return heard * mask.view(*mask.shape, *[1] * (heard.dim() - 2)), mask


def inputs(name: str, rows: int, extra: int = 0) -> dict[str, Tensor]:
    heard, mask = audio(name, rows, extra)
    return {"input_values" if name == "moonshine" else "input_features": heard, "attention_mask": mask}


def close(got: Tensor, expected: Tensor, within: float = 1e-5) -> None:
    assert (got - expected).abs().max() <= within * max(1.0, expected.abs().max().item())


def compiled(function: Callable[..., Any], backend: str = "aot_eager") -> tuple[Callable[..., Any], Any]:
    """The function compiled as one graph, and what counts the graphs."""
    counter = CompileCounterWithBackend(backend)
    return torch.compile(function, fullgraph=True, backend=counter), counter


def encodes(name: str, backend: str) -> None:
    encoder = MODELS[name]().get_encoder()
    traced, counter = compiled(encoder, backend)
    for rows, extra in ((2, 0), (3, 5)):
        given = audio(name, rows, extra)
        with torch.no_grad():
            expected = encoder(*given)
            for tensor in given:
                torch._dynamo.mark_dynamic(tensor, (0, 1))
            got = traced(*given)
        valid = expected.attention_mask.bool()
        assert torch.equal(got.attention_mask, expected.attention_mask)
        close(got.last_hidden_state[valid], expected.last_hidden_state[valid])
    assert counter.frame_count == 1, "a new length is traced again"


@each_model
@pytest.mark.usefixtures("path")
def test_encoder(name: str) -> None:
    encodes(name, "aot_eager")


@torch.no_grad()
def decodes(name: str, backend: str) -> None:
    model = MODELS[name]()
    traced, counter = compiled(model.decode, backend)
    plain, other = (model.start_decoding(inputs(name, 2), 1, 16) for _ in range(2))
    for token in range(5, 12):
        given = torch.tensor([[token], [token + 1]])
        close(traced(given, other), model.decode(given, plain))
    # Lengths of 0 and 1 are constants of their graphs.
    assert counter.frame_count == 3, "a new length is traced again"


@each_model
@pytest.mark.usefixtures("path")
def test_decoder_step(name: str) -> None:
    decodes(name, "aot_eager")


@pytest.mark.slow
@each_model
def test_forward_with_its_cache(name: str) -> None:
    torch._dynamo.reset()
    model = MODELS[name]()
    traced, counter = compiled(model)
    plain = other = None
    with torch.no_grad():
        encoded = model.get_encoder()(*audio(name, 2, 0))
        for token in range(5, 11):
            given = {"decoder_input_ids": torch.tensor([[token], [token + 1]]), "encoder_outputs": encoded}
            expected, got = model(**given, past_key_values=plain), traced(**given, past_key_values=other)
            plain, other = expected.past_key_values, got.past_key_values
            close(got.logits, expected.logits)
    # The first token, whose cache is made, has a graph of its own, too.
    assert counter.frame_count == 4, "a new length is traced again"


@pytest.mark.slow
@each_model
@pytest.mark.usefixtures("path")
def test_training_step(name: str) -> None:
    # In evaluation, where no dropout is drawn.
    model = MODELS[name]()
    given = {**inputs(name, 2), "labels": torch.tensor([[7, 8, 9], [8, 9, -100]])}
    plain = model(**given).loss
    plain.backward()
    expected = {parameter: parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None}
    model.zero_grad()
    traced, _ = compiled(model)
    loss = traced(**given).loss
    loss.backward()
    close(loss, plain)
    assert expected
    for parameter, grad in expected.items():
        close(parameter.grad, grad)


@each_model
def test_exported_encoder(name: str, path: str) -> None:
    encoder = MODELS[name]().get_encoder()
    with torch.no_grad():
        program = torch.export.export(encoder, audio(name, 2, 0), dynamic_shapes=({0: DYNAMIC, 1: DYNAMIC},) * 2)
        ours = [node for node in program.graph.nodes if "fastspeech" in str(node.target)]
        assert bool(ours) == (path == "ops")
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        for rows, extra in ((2, 0), (3, 5)):
            given = audio(name, rows, extra)
            expected, got = encoder(*given), loaded(*given)
            valid = expected.attention_mask.bool()
            assert torch.equal(got.attention_mask, expected.attention_mask)
            close(got.last_hidden_state[valid], expected.last_hidden_state[valid])


def steps_of_kyutai(backend: str) -> None:
    model = tiny_kyutai.model()
    traced, counter = compiled(model.step, backend)
    plain, other = model.start(2), model.start(2)
    generator = torch.Generator().manual_seed(0)
    # More tokens than the window and the ring of its pages hold.
    for _ in range(18):
        tokens, codes = (torch.randint(16, size, generator=generator) for size in ((2,), (2, 8)))
        close(traced(tokens, codes, other), model.step(tokens, codes, plain))
    assert counter.frame_count == 1


@pytest.mark.usefixtures("path")
def test_kyutai_step() -> None:
    steps_of_kyutai("aot_eager")


@pytest.mark.slow
def test_kyutai_forward() -> None:
    torch._dynamo.reset()
    model = tiny_kyutai.model()
    traced, counter = compiled(model)
    for count in (5, 9):
        ids = torch.randint(16, (2, count, 9), generator=torch.Generator().manual_seed(count))
        torch._dynamo.mark_dynamic(ids, 1)
        with torch.no_grad():
            close(traced(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
    assert counter.frame_count == 1


def frames_of_mimi(backend: str) -> None:
    codec = tiny_kyutai.model().codec_model
    traced, counter = compiled(codec.encode_frames, backend)
    plain, other = codec.start(2), codec.start(2)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        samples = torch.randn(2, 1, codec.config.frame_size, generator=generator)
        assert torch.equal(traced(samples, other), codec.encode_frames(samples, plain))
    assert counter.frame_count == 1


@pytest.mark.usefixtures("path")
def test_mimi_frames() -> None:
    frames_of_mimi("aot_eager")


class Frames(nn.Module):
    """A codec as a module that streams: the tensors of the state are given, and written to."""

    def __init__(self, codec: Any) -> None:
        super().__init__()
        self.codec = codec

    def forward(self, samples: Tensor, pasts: Tensor, pages: list[tuple[Tensor, Tensor]], positions: Tensor) -> Tensor:
        return self.codec.encode_frames(samples, MimiState(pasts, pages, positions, 1))


@pytest.mark.slow
def test_exported_codec_streams() -> None:
    codec = tiny_kyutai.model().codec_model
    size = codec.config.frame_size
    plain, other = codec.start(2), codec.start(2)
    tensors = other.pasts, other.pages, other.positions
    program = torch.export.export(Frames(codec), (torch.randn(2, 1, size), *tensors))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for _ in range(4):
        samples = torch.randn(2, 1, size)
        assert torch.equal(loaded(samples, *tensors), codec.encode_frames(samples, plain))
    assert torch.equal(plain.positions, other.positions)


@pytest.mark.slow
@each_model
@pytest.mark.parametrize("what", [encodes, decodes])
def test_inductor(name: str, what: Callable[[str, str], None]) -> None:
    torch._dynamo.reset()
    what(name, "inductor")


@pytest.mark.slow
@pytest.mark.parametrize("what", [steps_of_kyutai, frames_of_mimi])
def test_inductor_of_kyutai(what: Callable[[str], None]) -> None:
    torch._dynamo.reset()
    what("inductor")
