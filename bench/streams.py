"""Kyutai STT as live streams against transformers: one frame of 80 ms of every stream, and how many streams hold that.

Every stream is as far on as its windows are wide, so that a frame costs what it always will. The keys and values that
it has by then are zeros, which take as long to read as any.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import fastspeech
from fastspeech.bench import counts, models, record
from fastspeech.bench.plan import Plan, Row, Task
from fastspeech.bench.timing import Times, interleaved
from fastspeech.layers.linear import direct

DEADLINE_S = 0.08
FRAMES = 100
"""Of which all but one are to be done in time: the 99th percentile."""

CLOSE = 1 / 32
"""The count of streams that hold is found to within this share of itself."""


@dataclass(frozen=True)
class Size:
    """A model of some size: the kinds of devices it is measured on, its configuration, the batches its step is."""

    devices: tuple[str, ...]
    config: Mapping[str, Any]
    streams: tuple[int, ...]


SIZES = {
    "kyutai 8 x 512": Size(
        ("cpu",), {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "ffn_dim": 2816}, (1, 8, 64)
    ),
    "kyutai 1B": Size(
        ("cuda",),
        {"num_hidden_layers": 16, "num_attention_heads": 16, "sliding_window": 750, "vocab_size": 8001}
        | {"audio_pad_token_id": 73569, "max_position_embeddings": 750},
        (1, 8, 64, 256, 1024),
    ),
    "kyutai 2.6B": Size(("cuda",), {}, (1, 8, 64, 256, 512)),
}

_REHEARSED = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "ffn_dim": 64,
    "sliding_window": 9,
    "codec_config": {
        "model_type": "mimi",
        "num_filters": 4,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "sliding_window": 20,
        "codebook_size": 16,
        "codebook_dim": 8,
        "vector_quantization_hidden_dimension": 8,
        "upsample_groups": 4,
    },
}


def tasks(plan: Plan) -> list[Task]:
    """What there is to measure: how many streams of each size hold, then a frame of fewer and more streams."""
    kind = "cuda" if plan.rehearsal else plan.device.type
    chosen = [
        (name, size)
        for name, size in SIZES.items()
        if kind in size.devices and plan.wants(name, "kyutai_speech_to_text")
    ]
    found: list[Task] = [(f"{name}, streams held", functools.partial(hold, name, plan)) for name, _ in chosen]
    for name, size in chosen:
        for streams in size.streams:
            found.append((f"{name}, a frame of {streams}", functools.partial(frame, name, streams, plan)))
    return found


def frame(name: str, streams: int, plan: Plan) -> Iterator[Row]:
    """The rows of one frame: by the codec, by the decoder with its head, and by both, as a live stream has it."""
    ours, theirs = _pair(name, plan)
    dtype = str(ours.dtype).removeprefix("torch.")
    what: Row = {"kind": "stream", "name": name, "dtype": dtype, "batch": streams, "timing": ""}
    fault, error = _gate(name, plan)
    if fault:
        yield {**what, "case": f"frame of {streams}", "contender": "fastspeech", "fault": fault}
        return
    what["error"] = error
    count = plan.shrunk(streams, 2)
    sides: dict[str, Any] = {}
    for contender, make in _sides(ours, theirs).items():
        try:
            sides[contender] = make(count)
            sides[contender].frame()
        except Exception as error:
            if not counts.ran_out_of_memory(error):
                raise
            sides.pop(contender, None)
            yield {**what, "case": f"frame of {streams}", "contender": contender, "left_out": "out of memory"}
    for part in ("mimi", "lm", "frame"):
        functions = {contender: getattr(side, part) for contender, side in sides.items()}
        for contender, times in interleaved(functions, plan.device, plan.budget_s).items():
            figures: Row = {"realtime": streams * DEADLINE_S / times.median, "part": part}
            figures["peak_bytes"] = counts.peak(functions[contender], plan.device)
            figures["dispatched"] = counts.dispatched(functions[contender])
            figures |= counts.launches(functions[contender], plan.device)
            yield record.row(times, **what, case=f"{part} of {streams}", contender=contender, **figures)
    sides.clear()
    _let_go(plan.device)


def hold(name: str, plan: Plan) -> Iterator[Row]:
    """The most streams whose frames are done in 80 ms at the 99th percentile: of a `StreamingTranscriber`, and of the
    model alone in each library."""
    ours, theirs = _pair(name, plan)
    dtype = str(ours.dtype).removeprefix("torch.")
    fault, _ = _gate(name, plan)
    if fault:
        yield {"kind": "held", "name": name, "case": "", "contender": "fastspeech", "timing": "", "fault": fault}
        return
    sides: dict[str, Callable[[int], Any]] = {"fastspeech": functools.partial(_Live, ours)}
    sides |= {f"{library}, model alone": make for library, make in _sides(ours, theirs).items()}
    for contender, make in sides.items():
        probe = functools.partial(_probe, make, plan)
        streams, figures = most(probe, 1 if plan.device.type == "cpu" else 64, 4 if plan.rehearsal else 1 << 14)
        case = f"hold {DEADLINE_S * 1e3:g} ms"
        what = {"kind": "held", "name": name, "case": case, "dtype": dtype, "contender": contender, "timing": ""}
        yield {**what, "streams": streams, **figures}


def most(probe: Callable[[int], Row], first: int, limit: int) -> tuple[int, Row]:
    """The most streams that hold, by doubling from `first` and bisection, and what `probe` told of them: its "fails"
    says why so many do not hold. 0 where one stream does not; `limit` bounds the search."""
    held, figures = 0, {}
    failed, why = limit + 1, f"more than {limit} were not tried"
    streams = first
    while failed - held > max(1, held * CLOSE):
        seen = probe(streams)
        if "fails" in seen:
            failed, why = streams, seen["fails"]
        else:
            held, figures = streams, seen
        streams = min(2 * streams, limit) if failed > limit else (held + failed) // 2
        if held == limit or failed == 1:
            break
    return held, {**figures, "more": f"{failed} {why}" if failed <= limit else why}


def _probe(make: Callable[[int], Any], plan: Plan, streams: int) -> Row:
    """The 99th percentile of a frame of so many streams; "fails" where it is too late, or the memory too small."""
    allowed = FRAMES - int(FRAMES * 0.99)
    late, samples = 0, []
    try:
        side = make(streams)
        for count in range(-3, plan.shrunk(FRAMES, 5)):
            began = time.perf_counter()
            side.frame()
            if count >= 0:
                samples.append(time.perf_counter() - began)
                late += samples[-1] > DEADLINE_S
            if late > allowed:
                return {"fails": f"take {Times(samples).median * 1e3:.0f} ms"}
    except Exception as error:
        if not counts.ran_out_of_memory(error):
            raise
        return {"fails": "do not fit the memory"}
    finally:
        side = None
        _let_go(plan.device)
    times = Times(samples)
    return {"p99_s": times.percentile(99), "median_s": times.median}


@functools.lru_cache(maxsize=1)
def _gate(name: str, plan: Plan) -> tuple[str, float | None]:
    """Why the times would be worth nothing, or ""; and how far our logits are from what is right, as a share of their
    norm, over the first frames of two streams that are told the same text and the same codes."""
    ours, theirs = _pair(name, plan)
    if theirs is None:
        return "", None
    sides: list[Side] = [Ours(ours, 2, full=False), Theirs(theirs, 2, full=False)]
    if ours.dtype != torch.float32:
        sides.append(Theirs(models.in_float32(theirs), 2, full=False))
    logits: list[list[Tensor]] = [[] for _ in sides]
    for _ in range(4):
        codes = []
        for side in sides:
            side.samples = sides[0].samples
            codes.append(side._mimi())
        if (codes[0] != codes[1]).float().mean() > 0.01:  # near ties, which rounding decides
            return "codes differ from transformers'", float("inf")
        for side, found in zip(sides, logits, strict=True):
            side.codes = codes[1]
            found.append(side._logits().float())
        for side in sides:
            side.tokens = logits[1][-1].argmax(-1)
    ours_found, theirs_found, *rest = (torch.stack(found) for found in logits)
    return models.judged(ours_found, theirs_found, lambda: rest[0], ours.dtype)


def _let_go(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


@functools.lru_cache(maxsize=1)
def _pair(name: str, plan: Plan) -> tuple[Any, Any]:
    """Our model and, over the same parameters, transformers' (None where it is not installed), made on the device."""
    models.release(plan.device)
    config = _REHEARSED if plan.rehearsal else SIZES[name].config
    torch.manual_seed(0)
    if importlib.util.find_spec("transformers") is None:
        with torch.device(plan.device):
            made = fastspeech.KyutaiSpeechToTextForConditionalGeneration(fastspeech.KyutaiSpeechToTextConfig(**config))
        return made.to(plan.dtype).eval(), None
    import transformers

    kind = transformers.KyutaiSpeechToTextForConditionalGeneration
    with torch.device(plan.device):
        theirs = kind._from_config(transformers.KyutaiSpeechToTextConfig(**config), dtype=plan.dtype).eval()
    theirs.to(plan.device)  # with what was made elsewhere in spite of that
    theirs.codec_model.float()
    for buffer_name, buffer in theirs.codec_model.named_buffers():
        if buffer_name.endswith("embed_sum"):
            buffer.normal_()  # zeros, of which no code is the nearest, where none were loaded
    return fastspeech.from_transformers(theirs), theirs


def _sides(ours: Any, theirs: Any) -> dict[str, Callable[[int], Any]]:
    sides: dict[str, Callable[[int], Any]] = {"fastspeech": functools.partial(Ours, ours)}
    if theirs is not None:
        sides["transformers"] = functools.partial(Theirs, theirs)
    return sides


class _Live:
    """Streams of a `StreamingTranscriber`, whose callers push a frame each before a step. Its model, which knows no
    language, writes a word in nearly every frame."""

    def __init__(self, model: Any, streams: int) -> None:
        states: list[Any] = []
        start = model.start

        def kept(slots: int) -> Any:
            states.append(start(slots))
            return states[-1]

        processor = SimpleNamespace(
            feature_extractor=fastspeech.KyutaiSpeechToTextFeatureExtractor(),
            tokenizer=SimpleNamespace(decode=lambda ids, skip_special_tokens: " word" * len(ids)),
        )
        with mock.patch.object(model, "start", kept):
            self.transcriber = fastspeech.StreamingTranscriber(model, processor, slots=streams)
        self.slots = [self.transcriber.open() for _ in range(streams)]
        _fill(states[0], model.config)
        generator = torch.Generator().manual_seed(0)
        self.samples = (0.1 * torch.randn(model.config.frame_size, generator=generator)).numpy()

    def frame(self) -> list[Any]:
        for slot in self.slots:
            self.transcriber.push(slot, self.samples)
        return self.transcriber.step()


def _fill(state: Any, config: Any) -> None:
    """Put streams of ours as far on as their windows are wide."""
    state.decoder.positions.fill_(2 * config.sliding_window)
    state.codec.positions.fill_(2 * config.codec_config.sliding_window)


class Side:
    """Streams of a library, as far on as their windows are wide, or, not `full`, at their beginning. `mimi`, `lm` and
    `frame` step all of them once, by `samples`, up to tokens on the host."""

    def __init__(self, model: Any, streams: int) -> None:
        config, device = model.config, model.device
        self.model, self.device = model, device
        self.samples = 0.1 * torch.randn(streams, 1, config.codec_config.frame_size, device=device)
        self.tokens = torch.full((streams,), 3, device=device)
        self.codes = torch.zeros(streams, config.num_codebooks, dtype=torch.int64, device=device)

    def mimi(self) -> None:
        self.codes = self._mimi()
        self._wait()

    def lm(self) -> None:
        self.tokens = self._lm()
        self._wait()

    def frame(self) -> list[int]:
        self.codes = self._mimi()
        self.tokens = self._lm()
        return self.tokens.tolist()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _mimi(self) -> Tensor:
        raise NotImplementedError

    def _lm(self) -> Tensor:
        return self._logits().argmax(-1)

    def _logits(self) -> Tensor:
        raise NotImplementedError


class Ours(Side):
    def __init__(self, model: Any, streams: int, full: bool = True) -> None:
        super().__init__(model, streams)
        self.state = model.start(streams)
        # As a StreamingTranscriber has it.
        self.head = (model.model.product(streams) or direct)(model.lm_head)
        if full:
            _fill(self.state, model.config)

    def _mimi(self) -> Tensor:
        return self.model.codec_model.encode_frames(self.samples, self.state.codec)[..., 0]

    def _logits(self) -> Tensor:
        return self.head(self.model.step(self.tokens, self.codes, self.state))


class Theirs(Side):
    """As transformers' `generate` steps, with its caches."""

    def __init__(self, model: Any, streams: int, full: bool = True) -> None:
        super().__init__(model, streams)
        import transformers

        config, codec = model.config, model.config.codec_config
        self.written, self.heard = (transformers.DynamicCache(config=c) for c in (config, codec))
        self.padding: Any = None
        if full:
            self._fill(self.written, config, streams, model.dtype)
            self._fill(self.heard, codec, streams, torch.float32)

    def _fill(self, cache: Any, config: Any, streams: int, dtype: torch.dtype) -> None:
        shape = streams, config.num_key_value_heads, config.sliding_window, config.head_dim
        for layer in range(config.num_hidden_layers):
            zeros = torch.zeros(shape, dtype=dtype, device=self.device)
            cache.update(zeros, zeros, layer)

    def _mimi(self) -> Tensor:
        out = self.model.codec_model.encode(
            self.samples, encoder_past_key_values=self.heard, padding_cache=self.padding, use_streaming=True
        )
        self.heard, self.padding = out.encoder_past_key_values, out.padding_cache
        return out.audio_codes[..., 0]

    def _logits(self) -> Tensor:
        ids = torch.cat((self.tokens[:, None, None], self.codes[:, None]), 2)
        return self.model(input_ids=ids, past_key_values=self.written, use_cache=True).logits[:, -1]
