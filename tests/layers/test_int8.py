"""Weights of eight bits: the products against the definition, and models that decode with them."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastspeech
from fastspeech.auto import FAMILIES
from fastspeech.generation import graphs
from fastspeech.layers import int8
from fastspeech.layers.decoder import Decoder
from fastspeech.layers.relaid import Relaid
from fastspeech.parity.models import EXAMPLES, with_random_weights
from tests.generation.tape import WAYS

ASSETS = Path(fastspeech.__file__).parent / "assets"
NAMES = ("cohere_asr", "moonshine", "speech_to_text")


def test_a_weight_is_within_a_step():
    weight = torch.randn(9, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 9)[:, None]
    weight[4] = 0
    integers, scales = int8.quantised(weight)
    assert integers.abs().max() == 127
    apart = (integers.double() * scales.double()[:, None] - weight.double()).abs()
    # A largest weight may be beyond 127 steps by what the scale was rounded by; others are half a step away at most.
    assert (apart <= torch.where(integers.abs() == 127, 1.0, 0.5001) * scales.double()[:, None]).all()
    assert not integers[4].any()


@pytest.mark.parametrize("rows", [1, 4, 33])
@pytest.mark.parametrize("shape", [(9, 5), (36, 50), (64, 32), (288, 130), (1, 1)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_products(rows, shape, bias):
    """Against float64 with the same integers, whatever the strides and sizes."""
    torch.manual_seed(0)
    entering, leaving = shape
    maps = [nn.Linear(entering, out, bias) for out in (leaving, 3)]
    x = torch.randn(entering, rows, 1).transpose(0, 1).mT * torch.logspace(-3, 2, rows)[:, None, None]
    integers, scales = int8.quantised(torch.cat([linear.weight for linear in maps]))
    wanted = x.bfloat16().double() @ (integers.double() * scales.double()[:, None]).T
    if bias:
        wanted += torch.cat([linear.bias for linear in maps])
    out = Relaid().by(int8.in_int8)(*maps)(x)
    assert out.shape == wanted.shape
    assert ((out - wanted).abs() <= 2.0**-7 * wanted.abs().amax(-1, keepdim=True)).all()


@torch.no_grad()
def test_what_is_beside_a_row_changes_no_bit_of_it():
    torch.manual_seed(0)
    function = Relaid().by(int8.in_int8)(nn.Linear(96, 70))
    x = torch.randn(40, 96) * torch.logspace(-2, 2, 40)[:, None]
    together = function(x)
    for row in (0, 17, 39):
        assert torch.equal(function(x[row : row + 1])[0], together[row])


def made(name: str, seed: int) -> tuple[Any, dict[str, Tensor]]:
    family, example = FAMILIES[name], EXAMPLES[name]
    model = family.get(family.generator)(family.get(family.config)(**example.config))
    model = with_random_weights(model, seed).float().eval()
    inputs = example.inputs(torch.Generator().manual_seed(seed))
    del inputs["ids"]
    return model, {key: value.float() if value.is_floating_point() else value for key, value in inputs.items()}


def logits(model: Any, inputs: dict[str, Tensor], rows: int) -> Tensor:
    """After every one of 32 tokens of so many rows, decoded one by one."""
    one = {key: value[:1] for key, value in inputs.items()}
    ids = torch.randint(3, 50, (rows, 32), generator=torch.Generator().manual_seed(rows))
    cache = model.start_decoding(one, rows, 32)
    return torch.stack([model.decode(token, cache) for token in ids.split(1, dim=1)], 1)


@pytest.mark.parametrize(
    ("name", "most_moved", "least_stayed"),
    [("cohere_asr", 0.015, 0.97), ("moonshine", 0.045, 0.95), ("speech_to_text", 0.015, 0.98)],
)
def test_logits_move_a_little_and_most_tokens_stay(name, most_moved, least_stayed):
    """The figures of `decode_in_int8`'s docstring."""
    moved, stayed = [], []
    for seed in range(4):
        model, inputs = made(name, seed)
        plain = logits(model, inputs, 4)
        rounded = logits(model.decode_in_int8(), inputs, 4)
        moved.append(((rounded - plain).norm() / plain.norm()).item())
        stayed.append((rounded.argmax(-1) == plain.argmax(-1)).float().mean().item())
    assert 0 < sum(moved) / len(moved) < most_moved
    assert sum(stayed) / len(stayed) > least_stayed


@pytest.mark.parametrize("name", NAMES)
def test_the_switch_leaves_the_model_as_it_was(name):
    model, inputs = made(name, 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    plain = logits(model, inputs, 2)
    assert not torch.equal(logits(model.decode_in_int8(), inputs, 2), plain)
    assert torch.equal(logits(copy.deepcopy(model), inputs, 2), logits(model, inputs, 2))
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    model.decode_in_int8(False)
    assert not model.model.decoder._relaid._kept, "the copies are still held"
    assert torch.equal(logits(model, inputs, 2), plain)


def test_forward_and_gradients_do_not_heed_it():
    model, inputs = made("moonshine", 0)
    ids = torch.randint(3, 50, (len(next(iter(inputs.values()))), 5))
    plain = model(**inputs, decoder_input_ids=ids).logits
    assert torch.equal(model.decode_in_int8()(**inputs, decoder_input_ids=ids).logits, plain)


def test_the_demo_checkpoint_keeps_its_text():
    processor = fastspeech.AutoProcessor.from_pretrained(ASSETS)
    model = fastspeech.AutoModelForSpeechSeq2Seq.from_pretrained(ASSETS).decode_in_int8()
    audio = fastspeech.load_audio(ASSETS / "sample.flac", sampling_rate=16000)
    inputs = processor(audio, sampling_rate=16000, return_tensors="pt")
    words = (ASSETS / "sample.txt").read_text().strip()
    assert processor.batch_decode(model.generate(**inputs), skip_special_tokens=True)[0].strip() == words
    with fastspeech.Engine(model, processor, memory=1 << 22) as engine:
        assert engine.submit(ASSETS / "sample.flac").result().text.strip() == words
    assert engine.pool.in_use == engine.pool.reserved == 0


def test_it_is_for_devices_that_pytorch_has_a_product_for(monkeypatch):
    model, _ = made("moonshine", 0)
    with pytest.raises(ValueError, match="for models on the CPU or a CUDA device, this one is on meta"):
        copy.deepcopy(model).to("meta").decode_in_int8()
    model.decode_in_int8()
    moved = copy.deepcopy(model).to("meta")
    with (
        pytest.raises(ValueError, match="for models on the CPU or a CUDA device, this one is on meta"),
        torch.no_grad(),
    ):
        moved.model.decoder.product(1)
    asked = []
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *key: bool(asked.append(key)))
    with pytest.raises(ValueError, match=rf"PyTorch {re.escape(torch.__version__)} has no product .* for cpu tensors"):
        model.decode_in_int8()
    assert asked == [("aten::_weight_int8pack_mm", "CPU")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_the_layout_for_a_gpu_is_exact_but_for_the_weights(dtype):
    """By PyTorch's product on the CPU, which takes float32 as that on a GPU does."""
    torch.manual_seed(0)
    weight, bias = torch.randn(9, 64).to(dtype), torch.randn(9).to(dtype)
    x = torch.randn(64, 7, 1).to(dtype).transpose(0, 1).mT
    out = int8.in_float32(weight, bias)(x)
    integers, scales = int8.quantised(weight)
    wanted = x.double() @ (integers.double() * scales.double()[:, None]).T + bias.double()
    assert out.dtype == dtype and out.shape == (7, 1, 9)
    assert ((out - wanted).abs() <= 2 * torch.finfo(dtype).eps * (1 + wanted.abs().amax())).all()


@pytest.mark.parametrize("way", WAYS)
def test_recorded_steps_follow_the_switch(way, monkeypatch):
    WAYS[way](monkeypatch)
    model, inputs = made("moonshine", 0)
    texts = []
    for in_int8 in (False, True, False):
        with monkeypatch.context() as patch:
            if in_int8:
                product = model.model.decoder._relaid.by(int8.in_int8)
                patch.setattr(Decoder, "product", lambda self, rows, product=product: product)
            model.decode_in_int8(in_int8)
            options = {"eos_token_id": [], "max_new_tokens": 40}
            texts.append([model.generate(**inputs, **options, num_beams=beams).tolist() for beams in (1, 2)])
    assert texts[0] == texts[2] and all(one != other for one, other in zip(*texts[:2], strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
class TestOnAGPU:
    @pytest.mark.parametrize("rows", [1, 4, 33])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    @torch.no_grad()
    def test_products(self, rows, dtype):
        torch.manual_seed(0)
        for entering, leaving in ((9, 5), (288, 130), (1024, 4096)):
            linear = nn.Linear(entering, leaving).to("cuda", dtype)
            x = torch.randn(entering, rows, 1, device="cuda").transpose(0, 1).mT.to(dtype)
            integers, scales = int8.quantised(linear.weight)
            wanted = x.double() @ (integers.double() * scales.double()[:, None]).T + linear.bias.double()
            out = Relaid().by(int8.in_int8)(linear)(x)
            assert out.dtype == dtype and out.shape == wanted.shape
            assert ((out - wanted).abs() <= 4 * torch.finfo(dtype).eps * (1 + wanted.abs().amax())).all()

    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_most_tokens_stay(self, name, dtype, monkeypatch):
        model, inputs = made(name, 0)
        model = model.to("cuda", dtype)
        inputs = {k: v.to("cuda", dtype if v.is_floating_point() else None) for k, v in inputs.items()}
        plain = logits(model, inputs, 4)
        rounded = logits(model.decode_in_int8(), inputs, 4)
        assert 0 < (rounded - plain).norm() / plain.norm() < 0.06
        assert (rounded.argmax(-1) == plain.argmax(-1)).float().mean() > 0.9
        by_graphs = model.generate(**inputs, eos_token_id=[], max_new_tokens=12)
        monkeypatch.setattr(graphs, "captures", lambda device: False)
        model.model.decoder.seated.drop()
        assert torch.equal(model.generate(**inputs, eos_token_id=[], max_new_tokens=12), by_graphs)
