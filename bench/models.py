"""Models with random weights against transformers: encoder, a decoded token, a whole transcription."""

from __future__ import annotations

import copy
import functools
import gc
import importlib
import importlib.util
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import fastspeech
from fastspeech.auto import FAMILIES
from fastspeech.bench import counts, record
from fastspeech.bench.plan import Plan, Row, Task
from fastspeech.bench.timing import Function, interleaved

BATCHES = (1, 8, 64, 256)

ALLOWED = 1e-3
"""How far our logits may be from transformers' in float32, as a share of their norm. In another dtype they may be twice
as far from float32 as transformers' are, and by so much more."""

CALLS = 5
"""Of each function in a load, at least: to warm up, to time, to count."""

PARTS_OF_WHOLE = 2.2
"""What all parts of a load take together, in whole transcriptions."""

ATTENTION = "transformers {}"
COMPILED = "transformers static, compiled"

RECORDED = "encoder, recorded"
"""Ours alone, as `generate` calls it: for few frames one CUDA graph. The part "encoder" launches its kernels."""

NO_TOKEN = 1 << 30
"""Of no vocabulary: where this is what ends a text, none ends before it has all its tokens."""


@dataclass(frozen=True)
class Size:
    """A model of some size.

    Attributes:
        family: its name in `fastspeech.auto`.
        devices: the kinds it is measured on.
        config: arguments of both libraries' configuration class.
        batches: clips at once.
        seconds: of each clip; the first is taken at all batches, the others at the first batch alone.
        tokens: that are decoded of each clip, whatever the model would rather do, on a CPU and on a GPU.
        search: arguments of `generate`.
        extractor: the class of both libraries that makes its features, where transcription from samples is measured.
        compiled: the batches at which transformers is compiled too; each takes it a while.
    """

    family: str
    devices: tuple[str, ...]
    config: Mapping[str, Any] = field(default_factory=dict)
    batches: tuple[int, ...] = BATCHES
    seconds: tuple[float, ...] = (10.0, 2.5, 20.0)
    tokens: Mapping[str, int] = field(default_factory=lambda: {"cpu": 60, "cuda": 60})
    search: Mapping[str, Any] = field(default_factory=dict)
    extractor: str | None = None
    compiled: tuple[int, ...] = (1,)


_COHERE_SMALL = {
    "encoder_config": {
        "model_type": "parakeet_encoder",  # without which earlier versions of transformers do not know it
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
    "cohere 8 x 512": Size(
        "cohere_asr",
        ("cpu",),
        _COHERE_SMALL,
        (1, 2, 8, 64, 256),
        (20.0, 5.0, 35.0),
        extractor="CohereAsrFeatureExtractor",
    ),
    "cohere 2B": Size(
        "cohere_asr",
        ("cuda",),
        {"decoder_start_token_id": 5},
        seconds=(35.0, 5.0, 15.0),
        tokens={"cuda": 140},  # four a second
        extractor="CohereAsrFeatureExtractor",
        compiled=(1, 64),
    ),
    "moonshine tiny": Size(
        "moonshine", ("cpu", "cuda"), {"pad_head_dim_to_multiple_of": 8}, batches=(*BATCHES, 1024), compiled=(1, 64)
    ),
    "moonshine base": Size("moonshine", ("cuda",), _MOONSHINE_BASE),
    "speech2text small": Size(
        "speech_to_text",
        ("cpu", "cuda"),
        {"init_std": 0.05},  # spread wider, so that beams do not tie
        search={"num_beams": 5},
    ),
}

_REHEARSED: dict[str, dict[str, Any]] = {
    "cohere_asr": {
        "encoder_config": {
            "model_type": "parakeet_encoder",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_mel_bins": 128,
            "subsampling_conv_channels": 8,
        },
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "decoder_start_token_id": 5,
        "vocab_size": 64,
    },
    "moonshine": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "encoder_num_hidden_layers": 1,
        "decoder_num_hidden_layers": 1,
        "encoder_num_attention_heads": 2,
        "decoder_num_attention_heads": 2,
        "vocab_size": 64,
        "pad_head_dim_to_multiple_of": 8,
    },
    "speech_to_text": {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 48,
        "decoder_ffn_dim": 48,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "conv_channels": 16,
        "vocab_size": 64,
        "init_std": 0.5,
    },
}


def tasks(plan: Plan, families: Collection[str] = FAMILIES) -> list[Task]:
    """What there is to measure: each size at each batch, then at each further length."""
    found: list[Task] = []
    for name, size in _chosen(plan, families):
        loads = [(batch, size.seconds[0]) for batch in size.batches]
        loads += [(size.batches[0], seconds) for seconds in size.seconds[1:]]
        too_long: dict[str, float] = {}
        for batch, seconds in loads:
            run = functools.partial(measure, name, batch, seconds, plan, False, too_long)
            found.append((f"{name} {batch} x {seconds:g} s", run))
    return found


def compiled_tasks(plan: Plan, families: Collection[str] = FAMILIES) -> list[Task]:
    """transformers' models compiled, which takes minutes."""
    found: list[Task] = []
    for name, size in _chosen(plan, families) if plan.compiled else ():
        for batch in size.compiled:
            run = functools.partial(measure, name, batch, size.seconds[0], plan, True, {})
            found.append((f"{name} {batch} x {size.seconds[0]:g} s, transformers compiled", run))
    return found


def _chosen(plan: Plan, families: Collection[str]) -> list[tuple[str, Size]]:
    kind = "cuda" if plan.rehearsal else plan.device.type
    return [
        (name, size)
        for name, size in SIZES.items()
        if size.family in families and kind in size.devices and plan.wants(name, size.family)
    ]


def measure(
    name: str, batch: int, seconds: float, plan: Plan, compiled: bool, too_long: dict[str, float]
) -> Iterator[Row]:
    """The rows of one load: of each part, by us and by transformers as it may be run, or as it is compiled alone.

    `too_long` holds what the smallest load of the model took that was left out on a CPU, and is written to.
    """
    size = SIZES[name]
    ours, theirs, dtype = _pair(name, plan)
    what = {
        "kind": "model",
        "name": name,
        "dtype": str(dtype).removeprefix("torch."),
        "batch": batch,
        "seconds": seconds,
        "tokens": _tokens(size, plan),
    }
    several = size.batches[:1] if plan.device.type == "cpu" and not plan.rehearsal else size.compiled
    main = seconds == size.seconds[0] and batch in several
    ways = _compiled_way(theirs) if compiled else _ways(theirs, all_of_them=main)
    if compiled and isinstance(ways, str):
        yield {**what, "case": f"{batch} x {seconds:g} s", "contender": COMPILED, "timing": "", "left_out": ways}
        return
    assert isinstance(ways, dict)
    if plan.device.type == "cpu" and not plan.rehearsal and batch > size.batches[0]:
        if name not in too_long:
            predicted = _predicted(size, ours, theirs, ways, batch, seconds, plan)
            if predicted > plan.longest_s:
                too_long[name] = predicted / batch
        if name in too_long:
            reason = f"predicted to take {too_long[name] * batch:.0f} s, more than --longest {plan.longest_s:g}"
            yield {**what, "case": f"{batch} x {seconds:g} s", "contender": "", "timing": "", "left_out": reason}
            return
    audio = _Audio(size, ours, batch, seconds, plan, dtype)
    fault, error = ("", None) if theirs is None else _gate(name, plan)
    for part, function in _parts(size, audio, plan).items():
        if compiled and part in ("encoder", RECORDED):  # which `generate` leaves as it is
            continue
        contenders: dict[str, Function] = {"fastspeech": functools.partial(function, ours)}
        for way, settings in () if part == RECORDED else ways.items():
            contenders[way] = functools.partial(_as_configured, function, theirs, settings)
        row = {**what, "case": f"{part}, {batch} x {seconds:g} s", "part": part, "timing": "", "error": error}
        if fault:
            yield {**row, "contender": "fastspeech", "fault": fault}
            continue
        yield from _rows(row, contenders, plan, compiled)


def _rows(what: Row, contenders: dict[str, Function], plan: Plan, compiled: bool) -> Iterator[Row]:
    """The rows of one part. Of a compiled contender the peer's row is kept, and not ours a second time."""
    batch, seconds, part = what["batch"], what["seconds"], what["part"]
    made: dict[str, Any] = {}
    took: dict[str, float] = {}
    for name, function in contenders.items():
        began = time.perf_counter()
        try:
            made[name] = function()
            took[name] = time.perf_counter() - began
        except Exception as error:
            spent = counts.ran_out_of_memory(error)
            reason = "out of memory" if spent else " ".join(f"{type(error).__name__}: {error}".split())[:300]
            yield {**what, "contender": name, "fault" if name == "fastspeech" and not spent else "left_out": reason}
            # What the failed call held may be needed by the next.
            _let_go(plan.device)
    able = {name: contenders[name] for name in made}
    agree = _agreement(made) if part not in ("encoder", RECORDED) else {}
    if what["dtype"] == "float32" and any(share < 1 for share in agree.values()):
        yield {**what, "contender": "fastspeech", "fault": f"tokens agree with transformers' by {agree}"}
        return
    made.clear()
    calls = what["tokens"] if part == "token" else 1
    for name, times in interleaved(able, plan.device, plan.budget_s, took=took).items():
        if compiled and name == "fastspeech":
            continue
        times = times.each_of(calls)
        figures: Row = {} if part == "token" else {"realtime": batch * seconds / times.median}
        if name in agree:
            figures["agreement"] = agree[name]
        profiled = part in ("encoder", RECORDED, "token") and batch == 1 and seconds == SIZES[what["name"]].seconds[0]
        figures |= _counted(able[name], calls, plan.device, name == COMPILED, profiled)
        yield record.row(times, **what, contender=name, **figures)


def _counted(function: Function, calls: int, device: torch.device, compiled: bool, profiled: bool) -> Row:
    """Memory and work of one call; what is compiled dispatches nothing that could be counted."""
    found: list[int] = []
    held = counts.peak(function if compiled else lambda: found.append(counts.dispatched(function)), device)
    # A profile of thousands of launches takes seconds to read.
    asked = {name: number / calls for name, number in counts.launches(function, device).items()} if profiled else {}
    return {"peak_bytes": held, **asked, **({} if compiled else {"dispatched": found[0] / calls})}


def _agreement(made: Mapping[str, Any]) -> dict[str, float]:
    """The share of our tokens that each other contender wrote too."""
    ours = made.get("fastspeech")
    shares = {}
    for name, tokens in made.items():
        if isinstance(ours, Tensor) and isinstance(tokens, Tensor) and name != "fastspeech":
            width = min(ours.shape[1], tokens.shape[1])
            same = (ours[:, :width] == tokens[:, :width]).sum().item()
            shares[name] = same / max(ours.numel(), tokens.numel())
    return shares


@functools.lru_cache(maxsize=1)
def _gate(name: str, plan: Plan) -> tuple[str, float]:
    """Why a model's times would be worth nothing, or ""; and how far its logits are from what is right, as a share of
    their norm: of two clips, and eight tokens given."""
    size = SIZES[name]
    ours, theirs, dtype = _pair(name, plan)
    inputs = _Audio(size, ours, 2, size.seconds[0], plan, dtype).inputs
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, ours.config.vocab_size, (2, 8), generator=generator).to(ours.device)

    def logits(model: Any) -> Tensor:
        audio = {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in inputs.items()}
        return model(**audio, decoder_input_ids=tokens).logits.float()

    return judged(logits(ours), logits(theirs), lambda: logits(in_float32(theirs)), dtype)


def judged(ours: Tensor, theirs: Tensor, exact: Callable[[], Tensor], dtype: torch.dtype) -> tuple[str, float]:
    """Why logits are not right, or ""; and their error as a share of the norm, by what `ALLOWED` says."""
    right = theirs if dtype == torch.float32 else exact()
    error, own = (((found - right).norm() / right.norm()).item() for found in (ours, theirs))
    allowed = 2 * own + ALLOWED
    return ("" if error <= allowed else f"logits err by {error:.3g} of their norm, allowed {allowed:.3g}"), error


def in_float32(model: Any) -> Any:
    """A copy, for once."""
    return copy.deepcopy(model).float()


def _predicted(
    size: Size, ours: Any, theirs: Any, ways: dict[str, Any], batch: int, seconds: float, plan: Plan
) -> float:
    """Seconds that a load will take, from a quarter of it."""
    part = max(1, batch // 4)
    whole = _parts(size, _Audio(size, ours, part, seconds, plan, plan.dtype), plan)["whole"]
    began = time.perf_counter()
    whole(ours)
    for settings in ways.values():
        _as_configured(whole, theirs, settings)
    return (time.perf_counter() - began) * batch / part * CALLS * PARTS_OF_WHOLE


@functools.lru_cache(maxsize=1)
def _pair(name: str, plan: Plan) -> tuple[Any, Any, torch.dtype]:
    """Our model and, over the same parameters, transformers' (None where it is not installed), made on the device."""
    size = SIZES[name]
    family = FAMILIES[size.family]
    config = _REHEARSED[size.family] if plan.rehearsal else dict(size.config)
    torch.manual_seed(0)
    if importlib.util.find_spec("transformers") is None:
        with torch.device(plan.device):
            ours = family.get(family.generator)(family.get(family.config)(**config))
        return ours.to(plan.dtype).eval(), None, plan.dtype
    import transformers

    kind = getattr(transformers, family.generator)
    with torch.device(plan.device):
        theirs = kind._from_config(getattr(transformers, family.config)(**config), dtype=plan.dtype).eval()
    theirs.to(plan.device)  # with what was made elsewhere in spite of that
    return fastspeech.from_transformers(theirs), theirs, plan.dtype


class _Audio:
    """What a load hears: `clips`, samples on the host, and `inputs`, what a model takes, on the device."""

    def __init__(self, size: Size, model: Any, batch: int, seconds: float, plan: Plan, dtype: torch.dtype) -> None:
        batch, seconds = plan.shrunk(batch, 3), plan.shrunk(seconds, 1.0)
        self.device, self.dtype = plan.device, dtype
        generator = torch.Generator().manual_seed(0)
        samples = int(16000 * seconds)
        self.clips: list[Any] = []
        if size.family == "moonshine" or size.extractor:
            noise = 0.1 * torch.randn(batch, samples, generator=generator)
            self.clips = list(noise.numpy())
        if size.family == "moonshine":
            mask = torch.ones(noise.shape, dtype=torch.long, device=plan.device)
            self.inputs = {"input_values": noise.to(plan.device, dtype), "attention_mask": mask}
            return
        config = model.config
        bins = config.encoder_config.num_mel_bins if size.family == "cohere_asr" else config.input_feat_per_channel
        features = torch.randn(batch, samples // 160, bins, generator=generator)
        mask = torch.ones(features.shape[:2], dtype=torch.long, device=plan.device)
        self.inputs = {"input_features": features.to(plan.device, dtype), "attention_mask": mask}

    def heard(self, extractor: Any) -> dict[str, Tensor]:
        """The model's inputs from samples, by an extractor that computes on the device."""
        made = extractor(self.clips, sampling_rate=16000, return_tensors="pt", device=str(self.device))
        features = made["input_features"].to(self.device, self.dtype)
        return {"input_features": features, "attention_mask": made["attention_mask"].to(self.device)}


def _tokens(size: Size, plan: Plan) -> int:
    return 4 if plan.rehearsal else size.tokens[plan.device.type]


def _parts(size: Size, audio: _Audio, plan: Plan) -> dict[str, Callable[[Any], Any]]:
    """What is timed, as functions of a model of either library; "token" is all of decoding."""
    tokens = _tokens(size, plan)
    # A rule that forbids ends is the host's, with which greedy steps would no longer be the GPU's alone.
    forced = {"eos_token_id": NO_TOKEN, "max_new_tokens": tokens, "do_sample": False, **size.search}
    inputs = audio.inputs
    batch = len(inputs["attention_mask"])

    def encoder(model: Any) -> Any:
        return model.model.encoder(**inputs)

    def whole(model: Any, given: dict[str, Tensor] = inputs) -> Any:
        return model.generate(**given, decoder_input_ids=_start(model, batch), **forced)

    heard: dict[int, Any] = {}

    def token(model: Any) -> Any:
        if id(model) not in heard:
            heard[id(model)] = encoder(model)
        # Search over several beams changes what it is given.
        encoded = type(heard[id(model)])(**heard[id(model)])
        start = _start(model, batch)
        return model.generate(
            encoder_outputs=encoded, attention_mask=inputs["attention_mask"], decoder_input_ids=start, **forced
        )

    def end_to_end(model: Any) -> Any:
        library = type(model).__module__.partition(".")[0]
        return whole(model, audio.heard(_extractor(library, str(size.extractor)))).cpu()

    parts: dict[str, Callable[[Any], Any]] = {"encoder": encoder, "token": token, "whole": whole}
    if plan.device.type == "cuda" or plan.rehearsal:
        parts[RECORDED] = lambda model: model.encode(inputs)
    return {**parts, "end to end": end_to_end} if size.extractor else parts


@functools.cache
def _extractor(library: str, name: str) -> Any:
    return getattr(importlib.import_module(library), name)()


def _start(model: Any, batch: int) -> Tensor:
    return torch.full((batch, 1), model.config.decoder_start_token_id, device=model.device)


def _ways(theirs: Any, all_of_them: bool) -> dict[str, dict[str, Any]]:
    """How transformers may be run: SDPA where the model has it, or all ways: eager too, and a static cache on a GPU."""
    if theirs is None:
        return {}
    own = "sdpa" if theirs._supports_sdpa else "eager"
    ways: dict[str, dict[str, Any]] = {ATTENTION.format(own): {"attention": own}}
    if all_of_them:
        ways[ATTENTION.format("eager")] = {"attention": "eager"}
        if theirs.device.type == "cuda" and theirs._can_compile_fullgraph:
            ways["transformers static"] = {"attention": own, "cache": "static"}
    return ways


def _compiled_way(theirs: Any) -> dict[str, dict[str, Any]] | str:
    """As `_ways`, compiled; or why it cannot be."""
    if theirs is None:
        return "transformers is not installed"
    if not theirs._can_compile_fullgraph:
        return f"transformers' {type(theirs).__name__} cannot be compiled with a static cache (_can_compile_fullgraph)"
    own = "sdpa" if theirs._supports_sdpa else "eager"
    return {COMPILED: {"attention": own, "cache": "static", "compiled": True}}


def _as_configured(function: Callable[[Any], Any], model: Any, settings: dict[str, Any]) -> Any:
    if model.config._attn_implementation != settings["attention"]:
        model.set_attn_implementation(settings["attention"])
    config = model.generation_config
    config.cache_implementation = settings.get("cache")
    config.disable_compile = not settings.get("compiled", False)
    config.compile_config = None
    if settings.get("compiled") and model.device.type == "cpu":
        import transformers

        config.compile_config = transformers.CompileConfig(mode="default")
        config.compile_config._compile_all_devices = True
    return function(model)


def release(device: torch.device) -> None:
    """Forget the models made last, so that what comes next has the memory."""
    _pair.cache_clear()
    _gate.cache_clear()
    _let_go(device)


def _let_go(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
