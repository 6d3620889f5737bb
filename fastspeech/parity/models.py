"""Random models, held to their own float64 results and to transformers where it is installed."""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastspeech.auto import FAMILIES
from fastspeech.kernels import use_backend
from fastspeech.parity.result import Fault, Result

LOGITS = 1e-4
"""How far float32 logits may be from float64's and from transformers'."""

NEW_TOKENS = 24


@dataclass(frozen=True)
class Example:
    """A model of a few thousand weights, none of its sizes a power of two where the model leaves a choice.

    Attributes:
        config: arguments of the configuration's class, here and in transformers.
        audio: makes the audio inputs of three clips of different length.
        start: the token that decoding starts with.
    """

    config: Mapping[str, Any]
    audio: Callable[[torch.Generator], dict[str, Tensor]]
    start: int = 1
    searches: Mapping[str, Mapping[str, Any]] = field(
        default_factory=lambda: {"greedy": {"no_repeat_ngram_size": 2}, "3 beams": {"num_beams": 3}}
    )


def _features(generator: torch.Generator, bins: int) -> dict[str, Tensor]:
    lengths = torch.tensor([97, 60, 41])
    mask = torch.arange(97) < lengths[:, None]
    features = torch.randn(3, 97, bins, generator=generator, dtype=torch.float64) * mask[..., None]
    return {"input_features": features, "attention_mask": mask.long()}


def _samples(generator: torch.Generator) -> dict[str, Tensor]:
    lengths = torch.tensor([9600, 7001, 5123])
    mask = torch.arange(9600) < lengths[:, None]
    samples = torch.randn(3, 9600, generator=generator, dtype=torch.float64) * mask
    return {"input_values": samples, "attention_mask": mask.long()}


EXAMPLES = {
    "cohere_asr": Example(
        {
            "encoder_config": {
                "hidden_size": 60,
                "num_hidden_layers": 2,
                "num_attention_heads": 3,
                "intermediate_size": 44,
                "num_mel_bins": 20,
                "subsampling_factor": 4,
                "subsampling_conv_channels": 6,
                "conv_kernel_size": 5,
            },
            "vocab_size": 50,
            "hidden_size": 36,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "intermediate_size": 44,
            "max_position_embeddings": 64,
            "pad_token_id": 2,
            "eos_token_id": 3,
            "bos_token_id": 4,
            "decoder_start_token_id": 1,
        },
        lambda generator: _features(generator, 20),
    ),
    "moonshine": Example(
        {
            "vocab_size": 50,
            "hidden_size": 72,
            "intermediate_size": 44,
            "encoder_num_hidden_layers": 2,
            "decoder_num_hidden_layers": 2,
            "encoder_num_attention_heads": 2,
            "decoder_num_attention_heads": 2,
            "pad_token_id": 2,
        },
        _samples,
    ),
    "speech_to_text": Example(
        {
            "vocab_size": 50,
            "d_model": 36,
            "encoder_layers": 2,
            "encoder_attention_heads": 3,
            "decoder_layers": 2,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 44,
            "decoder_ffn_dim": 28,
            "conv_channels": 22,
            "input_feat_per_channel": 14,
            "max_source_positions": 100,
            "max_target_positions": 60,
        },
        lambda generator: _features(generator, 14),
        start=2,
    ),
}
"""By the families' names in `fastspeech.auto`."""


def check(name: str, device: str = "cpu", backend: str = "auto", seed: int = 0) -> Result:
    """Logits and decoded tokens of a random model on a device, against float64 on the CPU and against transformers."""
    began = time.perf_counter()
    example, family = EXAMPLES[name], FAMILIES[name]
    exact = _with_random_weights(family.get(family.generator)(family.get(family.config)(**example.config)), seed)
    audio = example.audio(torch.Generator().manual_seed(seed))
    ids = torch.randint(4, 50, (3, 9), generator=torch.Generator().manual_seed(seed))
    ours = copy.deepcopy(exact).float().to(device)
    with use_backend("reference"):
        expected = _outcomes(exact, audio, ids, example)
    with use_backend(backend):
        found = _outcomes(ours, {key: _cast(value, device) for key, value in audio.items()}, ids.to(device), example)
    faults, error = _compare(expected, found, f"float32 on {device}", "float64 on the CPU")
    if importlib.util.find_spec("transformers") is not None:
        theirs = _theirs(family.generator, family.config, example, exact)
        peers = _outcomes(theirs, {key: _cast(value, "cpu") for key, value in audio.items()}, ids, example)
        more, apart = _compare(peers, found, f"float32 on {device}", "transformers")
        faults, error = faults + more, max(error, apart)
    return Result(name, "model", "float32", len(expected) * 2, error, LOGITS, faults, time.perf_counter() - began)


def _with_random_weights(model: Any, seed: int) -> Any:
    """The model in float64 with weights so large that what it writes depends on what it hears and has written."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.copy_(0.2 * noise + ("norm" in key and key.endswith("weight")))
    return model.double().eval()


def _theirs(generator: str, config: str, example: Example, exact: Any) -> Any:
    import transformers

    model = getattr(transformers, generator)(getattr(transformers, config)(**example.config)).eval()
    model.load_state_dict(copy.deepcopy(exact).float().state_dict())
    model.tie_weights()
    return model


def _cast(value: Tensor, device: str) -> Tensor:
    return value.to(device, dtype=torch.float32 if value.is_floating_point() else None)


@torch.no_grad()
def _outcomes(model: Any, audio: dict[str, Tensor], ids: Tensor, example: Example) -> dict[str, Tensor]:
    outcomes = {"logits": model(**audio, decoder_input_ids=ids).logits}
    for search, options in example.searches.items():
        outcomes[search] = model.generate(
            **audio,
            decoder_input_ids=torch.full_like(ids[:, :1], example.start),
            min_new_tokens=NEW_TOKENS,
            max_new_tokens=NEW_TOKENS,
            **options,
        )
    return outcomes


def _compare(
    expected: dict[str, Tensor], found: dict[str, Tensor], what: str, peer: str
) -> tuple[tuple[Fault, ...], float]:
    faults = []
    error = (found["logits"].double().cpu() - expected["logits"].double()).abs().max().item()
    if not error <= LOGITS:
        faults.append(Fault(f"logits against {peer}", f"{what} err by {error:.3g}, allowed {LOGITS:g}"))
    for search in expected.keys() - {"logits"}:
        if not torch.equal(found[search].cpu(), expected[search]):
            faults.append(Fault(f"{search} against {peer}", f"{what} writes other tokens"))
    return tuple(faults), error
