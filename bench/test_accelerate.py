"""transformers' models with our encoders and decoders against the same models without, float32 on the CPU: speed, and
the kernels that are launched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

import fastspeech

NEW_TOKENS = 40


def moonshine(layers: int = 6) -> Any:
    """moonshine-tiny's sizes."""
    return transformers.MoonshineForConditionalGeneration(
        transformers.MoonshineConfig(
            pad_head_dim_to_multiple_of=8,
            pad_token_id=2,
            encoder_num_hidden_layers=layers,
            decoder_num_hidden_layers=layers,
        )
    )


def speech_to_text(layers: int = 6) -> Any:
    """s2t-small-librispeech-asr's sizes, but for half of the encoder's layers."""
    return transformers.Speech2TextForConditionalGeneration(
        transformers.Speech2TextConfig(vocab_size=10000, encoder_layers=layers, decoder_layers=layers)
    )


def cohere_asr(layers: int = 4) -> Any:
    """A Conformer of half the width of cohere-transcribe's."""
    return transformers.CohereAsrForConditionalGeneration(
        transformers.CohereAsrConfig(
            encoder_config={
                "hidden_size": 640,
                "num_attention_heads": 8,
                "intermediate_size": 2560,
                "num_hidden_layers": layers,
            },
            hidden_size=512,
            intermediate_size=2048,
            num_attention_heads=8,
            num_hidden_layers=layers,
            vocab_size=16384,
        )
    )


MAKERS = {"moonshine": moonshine, "speech_to_text": speech_to_text, "cohere_asr": cohere_asr}


def audio(name: str, clips: int, seconds: int = 8) -> dict[str, torch.Tensor]:
    """Clips of which every second is shorter by a quarter."""
    key, rate, shape = {
        "moonshine": ("input_values", 16000, ()),
        "speech_to_text": ("input_features", 100, (80,)),
        "cohere_asr": ("input_features", 100, (128,)),
    }[name]
    lengths = torch.tensor([seconds * rate * (4 - i % 2) // 4 for i in range(clips)])
    mask = torch.arange(seconds * rate) < lengths[:, None]
    noise = torch.randn(clips, seconds * rate, *shape, generator=torch.Generator().manual_seed(0))
    return {key: 0.1 * noise * mask.view(*mask.shape, *(1 for _ in shape)), "attention_mask": mask.long()}


@pytest.fixture(params=MAKERS)
def pair(request: pytest.FixtureRequest) -> tuple[str, Any, Any]:
    torch.manual_seed(0)
    plain = MAKERS[request.param]().eval()
    accelerated = copy.deepcopy(plain)
    fastspeech.accelerate(accelerated, strict=True)
    return request.param, accelerated, plain


@pytest.mark.parametrize("clips", [1, 4])
def test_encoder(against: Any, pair: tuple[str, Any, Any], clips: int) -> None:
    name, accelerated, plain = pair
    batch = audio(name, clips)
    against(lambda: accelerated.model.encoder(**batch), lambda: plain.model.encoder(**batch), rounds=5)


@pytest.mark.parametrize("clips", [1, 4])
def test_transcribe(against: Any, pair: tuple[str, Any, Any], clips: int) -> None:
    """8 s and 40 tokens, encoder and decoder."""
    name, accelerated, plain = pair
    batch = audio(name, clips)

    def run(model: Any) -> torch.Tensor:
        return model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)

    assert torch.equal(run(accelerated), run(plain))
    against(lambda: run(accelerated), lambda: run(plain), rounds=5)


class Launches(TorchDispatchMode):
    """Counts the ops that PyTorch dispatches and that compute something: all but views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def launches(name: str, layers: int, accelerated: bool) -> tuple[int, int]:
    """Ops of the encoder, and of a decoder step with its head, in the middle of a run."""
    torch.manual_seed(0)
    model = MAKERS[name](layers).eval()
    if accelerated:
        fastspeech.accelerate(model, strict=True)
    batch = audio(name, 1, 4)
    for _ in range(2):  # the first run packs
        with Launches() as encoder:
            encoded = model.model.encoder(**batch)
    cache = None
    for _ in range(3):
        with Launches() as step:
            output = model(
                encoder_outputs=encoded,
                decoder_input_ids=torch.tensor([[5]]),
                past_key_values=cache,
                use_cache=True,
            )
        cache = output.past_key_values
    return encoder.count, step.count


@pytest.mark.parametrize("name", MAKERS)
def test_launches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer than without; what is printed is for one layer of the encoder, and for a step of one layer."""
    (few, more), (plain_few, plain_more) = (
        (launches(name, 1, accelerated), launches(name, 2, accelerated)) for accelerated in (True, False)
    )
    with capsys.disabled():
        for which, part in enumerate(("encoder layer", "step of a decoder layer")):
            print(
                f"\n{name}: {plain_more[which] - plain_few[which]} ops for one {part}, "
                f"accelerated {more[which] - few[which]}; two layers {plain_more[which]} and {more[which]}"
            )
    assert more[0] <= plain_more[0] and more[1] < plain_more[1]
