"""Weights of eight bits: the products against the definition, and models that decode with them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastspeech
from fastspeech.auto import FAMILIES
from fastspeech.layers import int8
from fastspeech.layers.relaid import Relaid
from fastspeech.parity.models import EXAMPLES, with_random_weights

ASSETS = Path(fastspeech.__file__).parent / "assets"
VNNI = int8.layout(64) is not None
needs_vnni = pytest.mark.skipif(not VNNI, reason="this processor has no VNNI")
NAMES = ("cohere_asr", "moonshine", "speech_to_text")
each_rows = pytest.mark.parametrize(
    "rows", [1, 4, pytest.param(5, marks=needs_vnni), pytest.param(33, marks=needs_vnni)]
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_is_within_half_a_step(dtype):
    weight = torch.randn(9, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 9)[:, None]
    weight[4] = 0
    integers, scales = int8.quantised(weight, dtype)
    assert integers.abs().max() == 127 and scales.dtype == dtype
    apart = (integers.double() * scales.double()[:, None] - weight.double()).abs()
    # A largest weight may be beyond 127 steps by what the scale was rounded by.
    most = 0.5 if dtype == torch.float32 else 0.75
    assert (apart <= (most + 1e-4) * scales.double()[:, None]).all()
    assert not integers[4].any()


def defined(maps: list[nn.Linear], x: Tensor, rows: int) -> Tensor:
    """In float64, with what is rounded rounded."""
    outs = []
    for linear in maps:
        integers, scales = int8.quantised(linear.weight, torch.bfloat16 if rows <= int8.FEW_ROWS else torch.float32)
        weight = integers.double() * scales.double()[:, None]
        if rows <= int8.FEW_ROWS:
            rounded = x.bfloat16().double()
        else:
            steps = x.double().abs().amax(-1, keepdim=True) / 127
            rounded = torch.where(steps > 0, (x.double() / steps + 0.5).floor() * steps, 0.0)
        out = rounded @ weight.T
        outs.append(out if linear.bias is None else out + linear.bias.double())
    return torch.cat(outs, -1)


@each_rows
@pytest.mark.parametrize("shape", [(9, 5), (36, 50), (64, 32), (288, 130), (1, 1)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_products(rows, shape, bias):
    torch.manual_seed(0)
    entering, leaving = shape
    maps = [nn.Linear(entering, out, bias) for out in (leaving, 3)]
    x = torch.randn(entering, rows, 1).transpose(0, 1).mT * torch.logspace(-3, 2, rows)[:, None, None]
    x[rows // 2] = 0 if rows > 1 else x[0]
    out = Relaid().by(int8.layout(rows))(*maps)(x)
    wanted = defined(maps, x, rows)
    assert out.shape == wanted.shape
    assert (
        (out - wanted).abs() <= (0.01 if rows <= int8.FEW_ROWS else 1e-5) * wanted.abs().amax(-1, keepdim=True)
    ).all()


@needs_vnni
@torch.no_grad()
def test_what_is_beside_a_row_changes_no_bit_of_it():
    torch.manual_seed(0)
    function = Relaid().by(int8.layout(64))(nn.Linear(96, 70))
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
    ("name", "rows", "most_moved", "least_stayed"),
    [
        ("cohere_asr", 4, 0.015, 0.97),
        ("moonshine", 4, 0.045, 0.95),
        ("speech_to_text", 4, 0.015, 0.98),
        pytest.param("cohere_asr", 12, 0.02, 0.96, marks=needs_vnni),
        pytest.param("moonshine", 12, 0.055, 0.94, marks=needs_vnni),
        pytest.param("speech_to_text", 12, 0.02, 0.98, marks=needs_vnni),
    ],
)
def test_logits_move_a_little_and_most_tokens_stay(name, rows, most_moved, least_stayed):
    """The figures of `decode_in_int8`'s docstring."""
    moved, stayed = [], []
    for seed in range(4):
        model, inputs = made(name, seed)
        plain = logits(model, inputs, rows)
        rounded = logits(model.decode_in_int8(), inputs, rows)
        moved.append(((rounded - plain).norm() / plain.norm()).item())
        stayed.append((rounded.argmax(-1) == plain.argmax(-1)).float().mean().item())
    print(name, rows, sum(moved) / 4, sum(stayed) / 4)
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
    assert torch.equal(logits(model.decode_in_int8(False), inputs, 2), plain)


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


def test_it_is_for_the_cpu():
    model, _ = made("moonshine", 0)
    with pytest.raises(ValueError, match="for models on the CPU, this one is on meta"):
        copy.deepcopy(model).to("meta").decode_in_int8()
    model.decode_in_int8()
    with pytest.raises(ValueError, match="for models on the CPU, this one is on meta"), torch.no_grad():
        model.to("meta").model.decoder.product(1)
