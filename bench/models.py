"""Models with random weights against transformers: encoder, a decoded token, a whole transcription."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastspeech.auto import FAMILIES
from fastspeech.bench import record
from fastspeech.bench.kernels import Task
from fastspeech.bench.timing import Function, interleaved

TOKENS = 60
"""Decoded in each run, whatever the model would rather do."""


@dataclass(frozen=True)
class Size:
    """A model of some size.

    Attributes:
        family: its name in `fastspeech.auto`.
        devices: the kinds it is measured on.
        config: arguments of both libraries' configuration class.
        batches: clips at once, on a CPU and on a GPU.
        seconds: of each clip; the first is taken at all batches, the others at the first batch alone.
        search: arguments of `generate`.
    """

    family: str
    devices: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    batches: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: {"cpu": (1, 8), "cuda": (1, 8, 64, 256)})
    seconds: tuple[float, ...] = (10.0, 5.0, 20.0, 30.0)
    search: Mapping[str, Any] = field(default_factory=dict)


_COHERE_SMALL = {
    "encoder_config": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_mel_bins": 128,
        "subsampling_conv_channels": 128,
    },
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "decoder_start_token_id": 5,
}

_MOONSHINE_BASE = {
    "hidden_size": 416,
    "intermediate_size": 1664,
    "encoder_num_hidden_layers": 8,
    "decoder_num_hidden_layers": 8,
    "partial_rotary_factor": 0.62,
}

SIZES = {
    "cohere 8 x 512": Size("cohere_asr", ("cpu",), _COHERE_SMALL, {"cpu": (1, 2)}, (20.0, 10.0)),
    "cohere 2B": Size(
        "cohere_asr", ("cuda",), {"decoder_start_token_id": 5}, {"cuda": (1, 8, 64)}, (35.0, 5.0, 10.0, 20.0)
    ),
    "moonshine tiny": Size("moonshine", ("cpu", "cuda"), {"pad_head_dim_to_multiple_of": 8}),
    "moonshine base": Size("moonshine", ("cuda",), _MOONSHINE_BASE),
    "speech2text small": Size(
        "speech_to_text",
        ("cpu", "cuda"),
        {"init_std": 0.05},  # spread wider, so that beams do not tie
        {"cpu": (1, 2), "cuda": (1, 8, 64)},
        search={"num_beams": 5},
    ),
}


def tasks(device: torch.device, names: list[str], compiled: bool, budget_s: float) -> list[Task]:
    """What there is to measure on this device: each size at each batch, then at each further length."""
    found: list[Task] = []
    for name, size in SIZES.items():
        if device.type not in size.devices or (names and name not in names and size.family not in names):
            continue
        batches = size.batches[device.type]
        loads = [(batch, size.seconds[0]) for batch in batches]
        loads += [(batches[0], seconds) for seconds in size.seconds[1:]]
        for batch, seconds in loads:
            run = functools.partial(measure, name, size, batch, seconds, device, compiled, budget_s)
            found.append((f"{name} {batch} x {seconds:g} s", run))
    return found


def measure(
    name: str, size: Size, batch: int, seconds: float, device: torch.device, compiled: bool, budget_s: float
) -> Iterator[dict[str, Any]]:
    """The rows of one load: of each part, by us and by transformers as it is configured in several ways."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    ours, theirs = _pair(name, device, dtype)
    audio = _audio(size, ours, batch, seconds, device, dtype)
    what = {
        "kind": "model",
        "name": name,
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        "seconds": seconds,
    }
    for part, function in _parts(size, audio).items():
        contenders: dict[str, Function] = {"fastspeech": functools.partial(function, ours)}
        for way, settings in _ways(theirs, compiled).items():
            contenders[way] = functools.partial(_as_configured, function, theirs, settings)
        counts = {contender: _dispatched(run) for contender, run in contenders.items()}
        peaks = {contender: _peak(run, device) for contender, run in contenders.items()}
        for contender, times in interleaved(contenders, device, budget_s).items():
            calls = TOKENS if part == "token" else 1
            times = type(times)([sample / calls for sample in times.samples])
            rate = {"realtime": batch * seconds / times.median} if part != "token" else {}
            case = f"{part}, {batch} x {seconds:g} s"
            counted = {"dispatched": counts[contender] / calls, "peak_bytes": peaks[contender]}
            yield record.row(times, **what, case=case, part=part, contender=contender, timing="", **rate, **counted)


@functools.lru_cache(maxsize=1)
def _pair(name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """Our model and, over the same parameters, transformers' (None where it is not installed)."""
    size = SIZES[name]
    family = FAMILIES[size.family]
    torch.manual_seed(0)
    with torch.device(device):
        ours = family.get(family.generator)(family.get(family.config)(**size.config)).to(dtype).eval()
    if importlib.util.find_spec("transformers") is None:
        return ours, None
    import transformers

    with torch.device("meta"):
        theirs = getattr(transformers, family.generator)(getattr(transformers, family.config)(**size.config)).eval()
    theirs = theirs.to_empty(device=device).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    theirs.tie_weights()
    _fill_buffers(theirs, family, size, device)
    return ours, theirs


def _fill_buffers(theirs: Any, family: Any, size: Size, device: torch.device) -> None:
    """Buffers that no checkpoint holds, such as rotary frequencies, which were made without values."""
    import transformers

    fresh = getattr(transformers, family.generator)(getattr(transformers, family.config)(**size.config))
    kept = theirs.state_dict().keys()
    for key, value in fresh.named_buffers():
        if key not in kept:
            theirs.get_buffer(key).copy_(value.to(device))


def _audio(
    size: Size, model: Any, batch: int, seconds: float, device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    if size.family == "moonshine":
        samples = 0.1 * torch.randn(batch, int(16000 * seconds), generator=generator)
        mask = torch.ones(samples.shape, dtype=torch.long, device=device)
        return {"input_values": samples.to(device, dtype), "attention_mask": mask}
    config = model.config
    bins = config.encoder_config.num_mel_bins if size.family == "cohere_asr" else config.input_feat_per_channel
    features = torch.randn(batch, int(100 * seconds), bins, generator=generator)
    mask = torch.ones(features.shape[:2], dtype=torch.long, device=device)
    return {"input_features": features.to(device, dtype), "attention_mask": mask}


def _parts(size: Size, audio: dict[str, Tensor]) -> dict[str, Callable[[Any], Any]]:
    """What is timed, as functions of a model of either library; "token" is all of decoding, for TOKENS of them."""
    forced = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS, "do_sample": False, **size.search}
    batch = next(iter(audio.values())).shape[0]

    def encoder(model: Any) -> Any:
        return model.model.encoder(**audio)

    def whole(model: Any) -> Any:
        return model.generate(**audio, decoder_input_ids=_start(model, batch), **forced)

    heard: dict[int, Any] = {}

    def token(model: Any) -> Any:
        if id(model) not in heard:
            heard[id(model)] = encoder(model)
        # Search over several beams changes what it is given.
        encoded = type(heard[id(model)])(**heard[id(model)])
        start = _start(model, batch)
        return model.generate(
            encoder_outputs=encoded, attention_mask=audio["attention_mask"], decoder_input_ids=start, **forced
        )

    return {"encoder": encoder, "token": token, "whole": whole}


def _start(model: Any, batch: int) -> Tensor:
    return torch.full((batch, 1), model.config.decoder_start_token_id, device=model.device)


def _ways(theirs: Any, compiled: bool) -> dict[str, dict[str, Any]]:
    """How transformers may be run."""
    if theirs is None:
        return {}
    own = theirs.config._attn_implementation  # SDPA where the model has it
    ways: dict[str, dict[str, Any]] = {f"transformers {own}": {"attention": own}}
    if theirs.device.type == "cuda":
        ways["transformers eager"] = {"attention": "eager"}
    if compiled:
        ways["transformers static, compiled"] = {"attention": own, "cache": "static"}
    return ways


def _as_configured(function: Callable[[Any], Any], model: Any, settings: dict[str, Any]) -> Any:
    if model.config._attn_implementation != settings["attention"]:
        model.set_attn_implementation(settings["attention"])
    model.generation_config.cache_implementation = settings.get("cache")
    return function(model)


class _Count(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += not function.is_view
        return function(*args, **(kwargs or {}))


def _dispatched(function: Function) -> int | float:
    """Operators that a call hands to PyTorch, views not counted: on a GPU nearly its launches."""
    with _Count() as counter:
        function()
    return counter.calls


def _peak(function: Function, device: torch.device) -> int | None:
    """Most bytes that a call holds on a GPU beyond what was there."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(torch.cuda.OutOfMemoryError):
        function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
