"""Random models, held to their own float64 results and to transformers where it is installed."""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastspeech.auto import FAMILIES
from fastspeech.integrations.transformers import peer
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
        inputs: makes the inputs for three clips of different length.
        outcomes: what a model of either library makes of them, by name: floats, which may err by `LOGITS`, and tokens,
            which may not.
        own: further outcomes, of our model alone.
    """

    config: Mapping[str, Any]
    inputs: Callable[[torch.Generator], dict[str, Tensor]]
    outcomes: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]
    own: Callable[[Any, dict[str, Tensor]], dict[str, Tensor]] = lambda model, inputs: {}


SEARCHES: dict[str, dict[str, Any]] = {"greedy": {"no_repeat_ngram_size": 2}, "3 beams": {"num_beams": 3}}


def _features(generator: torch.Generator, bins: int) -> dict[str, Tensor]:
    lengths = torch.tensor([97, 60, 41])
    mask = torch.arange(97) < lengths[:, None]
    features = torch.randn(3, 97, bins, generator=generator, dtype=torch.float64) * mask[..., None]
    return {"input_features": features, "attention_mask": mask.long(), "ids": _ids(generator)}


def _samples(generator: torch.Generator) -> dict[str, Tensor]:
    lengths = torch.tensor([9600, 7001, 5123])
    mask = torch.arange(9600) < lengths[:, None]
    samples = torch.randn(3, 9600, generator=generator, dtype=torch.float64) * mask
    return {"input_values": samples, "attention_mask": mask.long(), "ids": _ids(generator)}


def _ids(generator: torch.Generator) -> Tensor:
    return torch.randint(4, 50, (3, 9), generator=generator)


def _transcribed(start: int) -> Callable[[Any, dict[str, Tensor]], dict[str, Tensor]]:
    """Of an encoder-decoder: logits, and the tokens of a greedy search and of a beam search from `start`."""

    def outcomes(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        audio = {name: value for name, value in inputs.items() if name != "ids"}
        found = {"logits": model(**audio, decoder_input_ids=inputs["ids"]).logits}
        for search, options in SEARCHES.items():
            found[search] = model.generate(
                **audio,
                decoder_input_ids=torch.full_like(inputs["ids"][:, :1], start),
                min_new_tokens=NEW_TOKENS,
                max_new_tokens=NEW_TOKENS,
                **options,
            )
        return found

    return outcomes


def _frames(generator: torch.Generator) -> dict[str, Tensor]:
    """Text and codes of three streams of 14 frames."""
    text = torch.randint(0, 41, (3, 14, 1), generator=generator)
    return {"ids": torch.cat((text, torch.randint(0, 17, (3, 14, 8), generator=generator)), 2)}


def _streamed(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Logits step by step, past the window: of slots that begin anew in between, and stand in another order."""
    ids = inputs["ids"]
    state, hidden = model.start(3), []
    order = torch.tensor([2, 0, 1], device=ids.device)
    for step in range(ids.shape[1]):
        if step == 9:
            state.reset(order[:1])
        hidden.append(model.step(ids[:, step, 0], ids[:, step, 1:], state, order))
    return {"logits of steps": model.lm_head(torch.stack(hidden, 1))}


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
        _transcribed(1),
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
        _transcribed(1),
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
        _transcribed(2),
    ),
    "kyutai_speech_to_text": Example(
        {
            "codebook_vocab_size": 17,
            "vocab_size": 41,
            "hidden_size": 36,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "ffn_dim": 44,
            "sliding_window": 6,
            "num_codebooks": 8,
            "audio_bos_token_id": 16,
            "audio_pad_token_id": 41 + 8 * 17,
            "bos_token_id": 40,
            "codec_config": {"num_hidden_layers": 1, "num_filters": 4, "num_quantizers": 8},
        },
        _frames,
        lambda model, inputs: {"logits": model(inputs["ids"]).logits},
        _streamed,
    ),
}
"""By the families' names in `fastspeech.auto`."""


def check(name: str, device: str = "cpu", backend: str = "auto", seed: int = 0) -> Result:
    """Logits and decoded tokens of a random model on a device, against float64 on the CPU and against transformers."""
    began = time.perf_counter()
    example, family = EXAMPLES[name], FAMILIES[name]
    exact = with_random_weights(family.get(family.generator)(family.get(family.config)(**example.config)), seed)
    inputs = example.inputs(torch.Generator().manual_seed(seed))
    single = {key: value.float() if value.is_floating_point() else value for key, value in inputs.items()}
    with use_backend("reference"), torch.no_grad():
        expected = example.outcomes(exact, inputs) | example.own(exact, inputs)
    # Left to itself cuDNN convolves float32 in TF32, which errs by more than is allowed.
    with use_backend(backend), torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        ours = copy.deepcopy(exact).float().to(device)
        moved = {key: value.to(device) for key, value in single.items()}
        found = example.outcomes(ours, moved) | example.own(ours, moved)
    faults, error = _compare(expected, found, f"float32 on {device}", "float64 on the CPU")
    checks = len(expected)
    if importlib.util.find_spec("transformers") is not None:
        with torch.no_grad():
            peers = example.outcomes(_theirs(family.generator, family.config, example, exact), single)
        more, apart = _compare(peers, found, f"float32 on {device}", "transformers")
        faults, error, checks = faults + more, max(error, apart), checks + len(peers)
    return Result(name, "model", "float32", checks, error, LOGITS, faults, time.perf_counter() - began)


def with_random_weights(model: Any, seed: int) -> Any:
    """The model in float64 with weights so large that what it writes depends on what it hears and has written."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            weight.copy_(0.2 * noise + ("norm" in key and key.endswith("weight")))
    return model.double().eval()


def _theirs(generator: str, config: str, example: Example, exact: Any) -> Any:
    model = peer(generator, config, example.config)
    weights = copy.deepcopy(exact).float().state_dict()
    # A codec's modules have other names in memory than in files, and no outcome depends on it.
    decoder = {key: value for key, value in weights.items() if not key.startswith("codec_model.")}
    model.load_state_dict(decoder, strict=len(decoder) == len(weights))
    model.tie_weights()
    return model


def _compare(
    expected: dict[str, Tensor], found: dict[str, Tensor], what: str, peer: str
) -> tuple[tuple[Fault, ...], float]:
    """The faults, and the largest error of floats."""
    faults = []
    errors = [0.0]
    for name, right in expected.items():
        if not right.is_floating_point():
            if not torch.equal(found[name].cpu(), right):
                faults.append(Fault(f"{name} against {peer}", f"{what} writes other tokens"))
            continue
        errors.append((found[name].double().cpu() - right.double()).abs().max().item())
        if not errors[-1] <= LOGITS:
            faults.append(Fault(f"{name} against {peer}", f"{what} err by {errors[-1]:.3g}, allowed {LOGITS:g}"))
    return tuple(faults), max(errors)
