"""transformers' models with our encoders and decoders against the same models without, float32 on the CPU: speed of
transcription and of a training step, and the kernels that are launched."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from torch.utils._python_dispatch import TorchDispatchMode

import fastspeech
from fastspeech.kernels import dispatch

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


def kyutai_stt(layers: int = 8) -> Any:
    """A decoder of a quarter of stt-2.6b's width, and a codec so narrow that it takes little of the time."""
    model = transformers.KyutaiSpeechToTextForConditionalGeneration(
        transformers.KyutaiSpeechToTextConfig(
            hidden_size=512,
            num_hidden_layers=layers,
            num_attention_heads=8,
            ffn_dim=2816,
            codec_config={"num_filters": 4, "num_hidden_layers": 1},
        )
    )
    generation: Any = model.generation_config
    generation.audio_window_size = 1
    model.codec_model.generation_config.use_cache = True
    for name, buffer in model.codec_model.named_buffers():
        if name.endswith("embed_sum"):
            buffer.normal_()
    return model


MAKERS = {
    "moonshine": moonshine,
    "speech_to_text": speech_to_text,
    "cohere_asr": cohere_asr,
    "kyutai_stt": kyutai_stt,
}
WITH_ENCODER = [name for name in MAKERS if name != "kyutai_stt"]
"""Kyutai STT's codec stays as it is."""


def audio(name: str, clips: int, seconds: int = 8) -> dict[str, torch.Tensor]:
    """Clips of which every second is shorter by a quarter; of Kyutai STT 3.2 s, as it writes a token a frame."""
    if name == "kyutai_stt":
        noise = torch.randn(clips, 1, NEW_TOKENS * 1920, generator=torch.Generator().manual_seed(0))
        return {"input_values": 0.1 * noise}
    key, rate, shape = {
        "moonshine": ("input_values", 16000, ()),
        "speech_to_text": ("input_features", 100, (80,)),
        "cohere_asr": ("input_features", 100, (128,)),
    }[name]
    lengths = torch.tensor([seconds * rate * (4 - i % 2) // 4 for i in range(clips)])
    mask = torch.arange(seconds * rate) < lengths[:, None]
    noise = torch.randn(clips, seconds * rate, *shape, generator=torch.Generator().manual_seed(0))
    return {key: 0.1 * noise * mask.view(*mask.shape, *(1 for _ in shape)), "attention_mask": mask.long()}


def made(name: str, mode: Any = "inference") -> tuple[Any, Any]:
    torch.manual_seed(0)
    plain = MAKERS[name]().eval()
    accelerated = copy.deepcopy(plain)
    fastspeech.accelerate(accelerated, mode=mode, strict=True)
    return accelerated, plain


@pytest.mark.parametrize("clips", [1, 4])
@pytest.mark.parametrize("name", WITH_ENCODER)
def test_encoder(against: Any, name: str, clips: int) -> None:
    accelerated, plain = made(name)
    batch = audio(name, clips)
    against(lambda: accelerated.model.encoder(**batch), lambda: plain.model.encoder(**batch), rounds=5)


@pytest.mark.parametrize("clips", [1, 4])
@pytest.mark.parametrize("name", MAKERS)
def test_transcribe(against: Any, name: str, clips: int) -> None:
    """8 s and 40 tokens, all that the model does; of Kyutai STT 3.2 s."""
    accelerated, plain = made(name)
    batch = audio(name, clips)
    # Kyutai STT writes as many tokens as there are frames.
    length = {} if name == "kyutai_stt" else {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}

    def run(model: Any) -> torch.Tensor:
        found = model.generate(**batch, do_sample=False, **length)
        return found if isinstance(found, torch.Tensor) else found.sequences

    assert torch.equal(run(accelerated), run(plain))
    against(lambda: run(accelerated), lambda: run(plain), rounds=5)


@pytest.mark.parametrize("name", MAKERS)
def test_training_step(against: Any, name: str) -> None:
    """Loss and gradients of two clips of 4 s with 20 tokens each; of 40 frames of Kyutai STT."""
    accelerated, plain = made(name, "training")
    ids = torch.randint(5, 1000, (2, 20), generator=torch.Generator().manual_seed(1))
    if name == "kyutai_stt":
        codes = torch.randint(0, 2048, (2, NEW_TOKENS, 33), generator=torch.Generator().manual_seed(1))
        batch = {"input_ids": codes, "labels": codes[..., 0]}
    else:
        batch = audio(name, 2, 4) | {"decoder_input_ids": ids, "labels": ids}

    def step(model: Any) -> torch.Tensor:
        model.zero_grad()
        with torch.enable_grad():
            loss = model.train()(**batch).loss
            loss.backward()
        return loss

    step(accelerated)
    against(lambda: step(accelerated), lambda: step(plain), rounds=5)


class Launches(TorchDispatchMode):
    """Counts the ops that PyTorch dispatches and that compute something: all but views and memory without values."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or "empty" in func.__name__)
        return func(*args, **(kwargs or {}))


def launches(name: str, layers: int, accelerated: bool, whole: bool = False) -> tuple[int, int]:
    """Ops of the encoder, where there is one, and of a decoder step with its head, in the middle of a run.

    Args:
        name: of the family.
        layers: of encoder and decoder.
        accelerated: or plain.
        whole: count each of our ops as one, which the fused kernel is, and not as what its reference dispatches.
    """
    torch.manual_seed(0)
    model = MAKERS[name](layers).eval()
    if accelerated:
        fastspeech.accelerate(model, strict=True)
    given: dict[str, Any] = {"decoder_input_ids": torch.tensor([[5]])}
    inline = (lambda op, args: False) if whole else dispatch.choose_inline
    with mock.patch.object(dispatch, "choose_inline", inline):
        if name in WITH_ENCODER:
            batch = audio(name, 1, 4)
            for _ in range(2):  # the first run packs
                with Launches() as encoder:
                    given["encoder_outputs"] = model.model.encoder(**batch)
        else:
            given = {"input_ids": torch.full((1, 1, 33), 5)}
        cache = None
        for _ in range(3):
            with Launches() as step:
                output = model(**given, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
    return (encoder.count if name in WITH_ENCODER else 0), step.count


@pytest.mark.parametrize("name", MAKERS)
def test_launches(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer than without; what is printed is for one layer of the encoder, and for a step of one layer."""
    plain, ours, whole = (
        [launches(name, layers, *how) for layers in (1, 2)] for how in ((False,), (True,), (True, True))
    )
    with capsys.disabled():
        for at, part in enumerate(("encoder layer", "step of a decoder layer")):
            if plain[1][at]:
                a, b, c = (two[at] - one[at] for one, two in (plain, ours, whole))
                print(
                    f"\n{name}: {a} ops for one {part}, accelerated {b}, our ops whole {c}; "
                    f"two layers {plain[1][at]}, {ours[1][at]}, {whole[1][at]}"
                )
    assert whole[1][0] <= ours[1][0] <= plain[1][0] and whole[1][1] <= ours[1][1] < plain[1][1]
