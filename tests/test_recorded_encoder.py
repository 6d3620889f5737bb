"""Recorded encoders, on the CPU: frames as those of the encoder itself, by functions that a CUDA graph can take."""

import contextlib
import copy
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from test_engine import TINY, alone, clip, engine
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fastspeech.auto import FAMILIES
from fastspeech.generation.graphs import Turns
from fastspeech.kernels import use_backend
from fastspeech.layers import padding, recorded_encoder
from fastspeech.layers.recorded_encoder import RecordedEncoder, _Bucket, most_frames
from fastspeech.models.cohere_asr.config import CohereAsrConfig
from fastspeech.models.cohere_asr.encoder import ParakeetEncoder
from fastspeech.models.moonshine import encoder as moonshine_encoder
from fastspeech.models.moonshine.config import MoonshineConfig
from fastspeech.models.moonshine.encoder import MoonshineEncoder
from fastspeech.models.speech_to_text.config import Speech2TextConfig
from fastspeech.models.speech_to_text.encoder import Speech2TextEncoder, output_length
from fastspeech.outputs import BaseModelOutput
from fastspeech.parity.models import EXAMPLES
from tests.generation.tape import WAYS, Stream, as_on_a_device, as_on_a_gpu
from tests.generation.test_graphs import NAMES, Linked, Watch, fresh, kept

HEARING = [*((name, None) for name in NAMES), ("moonshine", True)]
"""What is encoded, and with which exact_batching."""

HUNDREDTH = {"cohere_asr": 1, "moonshine": 160, "speech_to_text": 1}
"""Features or samples in 10 ms."""

BATCHES = (
    ([97, 60, 41], 97, True),
    ([100], 100, False),
    ([70, 98, 98, 33], 98, True),
    ([97, 100], 100, False),
    ([99, 31], 103, True),
    ([97], 97, True),
    ([40, 38], 40, True),
    ([97, 60, 41], 97, True),
)
"""Clips of so many hundredths, the length of their batch, and whether it has a mask. Some share a bucket with longer
ones and with more rows before them."""

BUCKETS = {"cohere_asr": 4, "moonshine": 5, "speech_to_text": 4}
"""How many of them there are. Moonshine's one more is for what the others leave out: 103 hundredths."""


def batch(name: str, lengths: list[int], size: int, masked: bool = True, exact: bool | None = None) -> dict[str, Any]:
    unit, main = HUNDREDTH[name], kept(name).main_input_name
    generator = torch.Generator().manual_seed(sum(lengths) + size)
    shape = EXAMPLES[name].inputs(generator)[main].shape[2:]
    inputs: dict[str, Any] = {main: torch.randn(len(lengths), unit * size, *shape, generator=generator)}
    if masked:
        mask = torch.arange(unit * size) < unit * torch.tensor(lengths)[:, None]
        inputs[main] *= mask.view(*mask.shape, *[1] * len(shape))
        inputs["attention_mask"] = mask.long()
    return inputs if exact is None else {**inputs, "exact_batching": exact}


def same(found: Any, expected: Any, rtol: float = 1e-4, atol: float = 2e-5) -> None:
    """Two encoder outputs, at valid frames."""
    frames, wanted, mask = found.last_hidden_state, expected.last_hidden_state, expected.attention_mask
    assert frames.shape == wanted.shape and (found.attention_mask is None) == (mask is None)
    if mask is not None:
        assert found.attention_mask.dtype == mask.dtype and found.attention_mask.equal(mask) and mask.any(1).all()
        frames, wanted = frames[mask.bool()], wanted[mask.bool()]
    torch.testing.assert_close(frames, wanted, rtol=rtol, atol=atol)


@torch.no_grad()
def eager(model: Any, inputs: dict[str, Any]) -> Any:
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr(recorded_encoder, "serves", lambda device: False)
        return model.encode(inputs)


def recorded(model: Any) -> RecordedEncoder:
    return model.model.encoder.recorded


@pytest.mark.parametrize(("name", "exact"), HEARING)
@torch.no_grad()
def test_what_is_behind_a_batch_changes_no_frame_of_it(
    name: str, exact: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, by operations that need nothing of the host."""
    model = copy.deepcopy(kept(name)).double()
    encoder = model.model.encoder
    for lengths, size, masked in BATCHES[:5]:
        inputs = batch(name, lengths, size, masked, exact)
        inputs[model.main_input_name] = given = inputs[model.main_input_name].double()
        expected = encoder(**inputs, return_dict=True)
        for rows, behind in ((0, 0), (1, 1), (3, 17 * HUNDREDTH[name])):
            wide = given.new_zeros(len(given) + rows, given.shape[1] + behind, *given.shape[2:])
            wide[: len(given), : given.shape[1]] = given
            with monkeypatch.context() as patch, Watch():
                patch.setattr(padding, "readable", lambda x: False)
                patch.setattr(moonshine_encoder, "through_onednn", lambda weight: False)
                heard = encoder.heard(given, inputs.get("attention_mask"), exact)
                counts = [torch.nn.functional.pad(count, (0, rows), value=1) for count in heard[:2]]
                frames = encoder.padded(wide, *counts)[: len(given), : heard.frames]
            same(BaseModelOutput(frames, attention_mask=expected.attention_mask), expected, 1e-9, 1e-10)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "exact"), HEARING)
@torch.no_grad()
def test_frames_are_those_of_the_encoder(
    name: str, exact: bool | None, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of batches that come one after the other into the same memory; what was given out stays as it is."""
    batches = [batch(name, *each, exact) for each in BATCHES]
    expected = [eager(kept(name), each) for each in batches]
    log = WAYS[way](monkeypatch)
    model = fresh(name)
    for _ in range(2):
        found = [model.encode(each) for each in batches]
        for one, wanted in zip(found, expected, strict=True):
            same(one, wanted)
    made, buckets = recorded(model).graphs, BUCKETS[name]
    assert made is not None and len(made.replays) == buckets and sum(made.replays.values()) == 2 * len(BATCHES)
    assert len(log) == (4 * buckets if way == "graphs" else 0)
    assert not any(bucket.frames.requires_grad for bucket in recorded(model)._buckets.values())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_frames_are_those_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    family, example = FAMILIES[name], EXAMPLES[name]
    theirs = getattr(transformers, family.generator)(getattr(transformers, family.config)(**example.config)).eval()
    theirs.load_state_dict(kept(name).state_dict(), strict=False)
    as_on_a_gpu(monkeypatch)
    model = fresh(name)
    for lengths, size, masked in BATCHES[:4]:
        inputs = batch(name, lengths, size, masked)
        found = model.encode(inputs)
        wanted = theirs.model.encoder(**inputs).last_hidden_state
        mask = None if found.attention_mask is None else found.attention_mask
        same(found, BaseModelOutput(wanted, attention_mask=mask), 1e-4, 1e-4)
    assert sum(recorded(model).graphs.replays.values()) == 4


def _write(model: Any) -> None:
    next(model.model.encoder.layers[0].parameters()).mul_(-1.5)


def _replace(model: Any) -> None:
    norm = model.get_submodule("model.encoder.layers.0." + NORMS[model.config.model_type])
    norm.weight = torch.nn.Parameter(torch.linspace(-1, 1, len(norm.weight)))


def _load(model: Any) -> None:
    model.model.encoder.load_state_dict({key: 0.7 * x for key, x in model.model.encoder.state_dict().items()})


def _write_unseen(model: Any) -> None:
    for parameter in model.model.encoder.layers.parameters():
        parameter.data *= 0.7
    model.eval()


def _exchange(model: Any) -> None:
    layers = model.model.encoder.layers
    layers[0], layers[1] = layers[1], layers[0]


NORMS = {
    "cohere_asr": "norm_self_att",
    "moonshine": "post_attention_layernorm",
    "speech_to_text": "final_layer_norm",
}


@pytest.mark.parametrize("change", [_write, _replace, _load, _write_unseen, _exchange])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_was_recorded_goes_with_a_weight(
    name: str, change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = as_on_a_gpu(monkeypatch)
    model = fresh(name)
    batches = [batch(name, *each) for each in BATCHES[:2]]
    for inputs in batches:
        before = model.encode(inputs)
    count = len(log)
    change(model)
    after = model.encode(inputs)
    assert not torch.allclose(after.last_hidden_state, before.last_hidden_state, rtol=1e-2, atol=1e-2)
    assert len(log) == count + 4
    for inputs in batches:
        same(model.encode(inputs), eager(model, inputs))
        same(model.encode(inputs), eager(model, inputs))
    assert len(log) == count + 8


@torch.no_grad()
def test_statistics_of_a_norm_count_as_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    model, inputs = fresh("cohere_asr"), batch("cohere_asr", *BATCHES[0])
    before = model.encode(inputs)
    model.model.encoder.layers[1].conv.norm.running_mean.add_(3.0)
    after = model.encode(inputs)
    assert not torch.allclose(after.last_hidden_state, before.last_hidden_state, atol=1e-2)
    same(after, eager(model, inputs))


@torch.no_grad()
def test_to_and_copies_begin_without_recordings(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    model, inputs = fresh("moonshine"), batch("moonshine", *BATCHES[0])
    model.encode(inputs)
    assert recorded(model).graphs is not None and recorded(copy.deepcopy(model)).graphs is None
    model.to(torch.bfloat16)
    assert recorded(model).graphs is None
    inputs["input_values"] = inputs["input_values"].bfloat16()
    same(model.encode(inputs), eager(model, inputs), 0.05, 0.05)


@torch.no_grad()
def test_a_greater_table_of_positions_leaves_no_smaller_one_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    model = fresh("cohere_asr")
    cases = [batch("cohere_asr", [size], size) for size in (100, 140, 900, 100)]
    for inputs in cases:
        same(model.encode(inputs), eager(model, inputs))
        held = recorded(model)
        assert any(tensor.data_ptr() == model.model.encoder._positions.data_ptr() for tensor in held._memory)
    assert len(held.graphs.replays) == 2


@torch.no_grad()
def test_the_last_used_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_encoder, "_MOST", 2)
    log = as_on_a_gpu(monkeypatch)
    model = fresh("moonshine")
    recordings = []
    for rows in (1, 2, 1, 4, 1, 2):
        inputs = batch("moonshine", [90] * rows, 90)
        same(model.encode(inputs), eager(model, inputs))
        recordings.append(len(log) // 4)
        made = recorded(model)
        assert made._buckets.keys() == made.graphs.replays.keys() and len(made._buckets) <= 2
    assert recordings == [1, 2, 2, 3, 3, 4]


@torch.no_grad()
def test_a_type_and_a_backend_have_recordings_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    log = as_on_a_gpu(monkeypatch)
    model, inputs = fresh("moonshine"), batch("moonshine", *BATCHES[1])
    model.encode(inputs)
    with use_backend("reference"):
        same(model.encode(inputs), eager(model, inputs))
    assert len(log) == 8
    # What the encoder refuses is refused, whatever it was recorded with.
    with pytest.raises(RuntimeError, match=r"dtype|type"):
        model.encode({"input_values": inputs["input_values"].half()})
    same(model.encode(inputs), eager(model, inputs))


def _hook(model: Any) -> None:
    model.model.encoder.layers[1].register_forward_hook(lambda *args: None)


def _compile_in_place(model: Any) -> None:
    model.model.encoder.layers[0].compile(backend="eager")


def _compile(model: Any) -> None:
    model.model.encoder.layers[0] = torch.compile(model.model.encoder.layers[0], backend="eager")


def _compile_whole(model: Any) -> None:
    model.model.encoder = torch.compile(model.model.encoder, backend="eager")


def _train(model: Any) -> None:
    model.train()


def _grow(model: Any) -> None:
    """The batch has 3 x 39 frames, and more with what pads it in its bucket."""
    recorded(model)._most_frames = 150.0


CHANGES = [_hook, _compile_in_place, _compile, _compile_whole, _train, _grow]


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_who_wants_to_be_called_is_called(change: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_device(monkeypatch)
    model, inputs = fresh("moonshine"), batch("moonshine", *BATCHES[0])
    model.encode(inputs)
    model.encode(inputs)
    change(model)
    held, called = recorded(model), []
    replays = 0 if held.graphs is None else sum(held.graphs.replays.values())
    encoded = model.model.encoded
    monkeypatch.setattr(model.model, "encoded", lambda *args: called.append(1) or encoded(*args))
    with torch.compiler.set_stance("force_eager"):
        model.encode(inputs)
    assert called == [1]
    # At most one was in vain, while the modules were looked at.
    assert held.graphs is None or sum(held.graphs.replays.values()) <= replays + 1


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_is_not_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_device(monkeypatch)
    model, inputs = fresh(name), batch(name, *BATCHES[0])
    main = model.main_input_name
    with torch.enable_grad():
        assert model.encode(inputs).last_hidden_state.requires_grad
    with torch.autocast("cpu"):
        model.encode(inputs)
    assert len(model.encode(inputs, with_states=True).hidden_states) == 1 + len(model.model.encoder.layers)
    assert model.encode(inputs, with_weights=True).attentions is not None
    for wrong in (inputs[main][0], inputs[main][..., :13]):
        with pytest.raises(ValueError, match="must be"):
            model.encode({main: wrong})
    with contextlib.suppress(ValueError, RuntimeError):  # as the encoder itself has it
        model.encode({key: value[:0] for key, value in inputs.items()})
    if name == "speech_to_text":
        factors = torch.tensor([0.0, 1.0, 0.5])
        silenced = model.encode({**inputs, "head_mask": factors})
        same(silenced, model.model.encoder(**inputs, head_mask=factors))
    assert recorded(model).graphs is None
    double = model.double()
    double.encode({**inputs, main: inputs[main].double()})
    assert recorded(model).graphs is None


def test_on_the_cpu_nothing_is_recorded() -> None:
    model = fresh("moonshine")
    with torch.no_grad():
        model.encode(batch("moonshine", *BATCHES[1]))
    assert recorded(model).graphs is None


def test_how_many_frames_a_gpu_has_to_be_busy_with() -> None:
    """Of the released sizes: a clip of any length and a few short ones, but no batch of many."""
    configs: list[tuple[Any, Any, float]] = [
        (ParakeetEncoder, CohereAsrConfig().encoder_config, 0.08),
        (MoonshineEncoder, MoonshineConfig(), 0.024),
        (Speech2TextEncoder, Speech2TextConfig(), 0.04),
    ]
    seconds = []
    for encoder, config, frame in configs:
        with torch.device("meta"):
            made = encoder(config)
        seconds.append(most_frames(made.bfloat16()) * frame)
        assert most_frames(made.float()) * frame == pytest.approx(seconds[-1] / 10)
    assert seconds == [pytest.approx(40, abs=1), pytest.approx(171, abs=1), pytest.approx(237, abs=1)]


def convolved(conv: nn.Conv1d, x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(len(x), conv.out_channels, output_length(x.shape[2], conv))


@pytest.mark.filterwarnings("ignore:Accessing the data pointer of FakeTensor")
@pytest.mark.parametrize(("name", "exact"), HEARING)
def test_encoding_cuda_tensors_needs_nothing_of_the_host(
    name: str, exact: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shapes and devices alone, of every operation but the kernels, as on a GPU."""
    as_on_a_device(monkeypatch)
    model = fresh(name)
    encoder = model.model.encoder
    inputs = batch(name, *BATCHES[0])
    with FakeTensorMode(), Linked(), torch.no_grad():
        for module in encoder.modules():
            for tensors in (module._parameters, module._buffers):
                for key, held in tensors.items():
                    if held is not None:
                        fake = torch.empty(held.shape, dtype=held.dtype, device="cuda")
                        tensors[key] = torch.nn.Parameter(fake) if tensors is module._parameters else fake
        given, mask = (torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in inputs.values())
        # PyTorch's own fake of a convolution in time asks a library that is not there.
        monkeypatch.setattr(nn.Conv1d, "forward", convolved)
        bucket = _Bucket(encoder, given, 4, given.shape[1] + 20)
        bucket.run(encoder)
        for masked, device in ((mask, "cuda"), (torch.empty(mask.shape), "cpu"), (None, "cpu")):
            with Watch(device):
                heard = encoder.heard(given, masked, exact)
            assert {count.device.type for count in heard[:2]} == {device}
            assert {count.shape for count in heard[:2]} == {(3,)}
        with Watch("cuda") as watch:
            bucket.fill(given, torch.empty(2, 3, dtype=torch.int64, device="cuda"))
            bucket.run(encoder)
        assert len(watch.noted) > 50


@torch.no_grad()
def test_threads_wait_for_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [batch("moonshine", *each) for each in BATCHES]
    expected = [eager(kept("moonshine"), each) for each in cases]
    as_on_a_gpu(monkeypatch)
    model, inside, found = fresh("moonshine"), [], {}
    run = _Bucket.fill

    def noted(self: _Bucket, *args: Any) -> None:
        inside.append(self)
        time.sleep(0.02)
        run(self, *args)
        assert len(inside) == 1
        inside.clear()

    monkeypatch.setattr(_Bucket, "fill", noted)

    @torch.no_grad()
    def encode(at: int) -> None:
        found[at] = model.encode(cases[at])

    threads = [threading.Thread(target=partial(encode, at)) for at in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for at, one in enumerate(expected):
        same(found[at], one)


def test_a_stream_waits_for_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    streams = [Stream(log, name) for name in "aab"]
    streams[1] = streams[0]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: streams.pop(0))
    turns = Turns()
    for _ in range(3):
        with turns.take(torch.device("cuda")):
            log.append("launch")
    assert log == ["launch", "launch", "b waits for a", "launch"]


@torch.no_grad()
def test_inference_mode_or_not_is_all_one(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [batch("cohere_asr", *each) for each in BATCHES[:3]]
    expected = [eager(kept("cohere_asr"), each) for each in cases]
    as_on_a_gpu(monkeypatch)
    for first in (True, False):
        model = fresh("cohere_asr")
        for inference in (first, not first, first):
            # To leave inference mode is to have gradients.
            with torch.inference_mode(inference), torch.no_grad():
                for case, wanted in zip(cases, expected, strict=True):
                    same(model.encode(case), wanted)
        assert list(recorded(model).graphs.replays.values()) == [6, 3]


@pytest.mark.parametrize("name", TINY)
def test_an_engine_encodes_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [alone(name, clip(0.5 + 0.7 * n, n), max_new_tokens=9, num_beams=1).text for n in range(4)]
    as_on_a_gpu(monkeypatch)
    with engine(name, max_rows=4) as e:
        handles = [e.submit(clip(0.5 + 0.7 * n, n), max_new_tokens=9, num_beams=1) for n in range(4)]
        assert [handle.result(60).text for handle in handles] == expected
        assert sum(recorded(e.model).graphs.replays.values()) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnAGPU:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize(("name", "exact"), HEARING)
    @torch.no_grad()
    def test_graphs_give_the_frames_of_the_encoder(self, name: str, exact: bool | None, dtype: torch.dtype) -> None:
        model = fresh(name).to("cuda", dtype)
        batches = []
        for each in BATCHES:
            inputs = batch(name, *each, exact)
            for key in ("attention_mask", model.main_input_name):
                if key in inputs:
                    inputs[key] = inputs[key].to("cuda", dtype if inputs[key].is_floating_point() else None)
            batches.append(inputs)
        close = (1e-3, 1e-4) if dtype == torch.float32 else (0.05, 0.05)
        for _ in range(2):
            found = [model.encode(inputs) for inputs in batches]
            for one, inputs in zip(found, batches, strict=True):
                same(one, eager(model, inputs), *close)
        made = recorded(model).graphs
        assert made is not None and len(made.replays) == BUCKETS[name]
        assert sum(made.replays.values()) == 2 * len(BATCHES)
        assert all(replay.is_graph for replay in made._recorded.values())
        next(model.model.encoder.layers[0].parameters()).mul_(-1.5)
        same(model.encode(batches[0]), eager(model, batches[0]), *close)

    @pytest.mark.parametrize("name", NAMES)
    @torch.no_grad()
    def test_a_second_call_waits_for_nothing(self, name: str) -> None:
        model = fresh(name).to("cuda")
        inputs = {key: value.to("cuda") for key, value in batch(name, *BATCHES[0]).items()}
        encoder, given = model.model.encoder, [inputs.get(key) for key in model.audio_inputs]
        expected = recorded(model).encode(encoder, partial(model.model.encoded, *given), *given)
        on_the_host = [None if x is None else x.cpu() if x.dim() == 2 and x.dtype == torch.int64 else x for x in given]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            found = [
                recorded(model).encode(encoder, partial(model.model.encoded, *each), *each)
                for each in (given, on_the_host)
            ]
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for one in found:
            same(one, expected, 0.0, 0.0)
        assert list(recorded(model).graphs.replays.values()) == [3]
