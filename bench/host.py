"""The host's side: media files to samples, one rate to another, samples to features; all beside real time."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import fastspeech
from fastspeech.bench import record
from fastspeech.bench.plan import Plan, Row, Task
from fastspeech.bench.timing import Function, interleaved

MEDIA = {
    "wav": ("wav", "pcm_s16le", 44100),
    "flac": ("flac", "flac", 44100),
    "mp3": ("mp3", "libmp3lame", 44100),
    "ogg": ("ogg", "libopus", 48000),
}
"""Container, codec and rate of each kind of file."""

EXTRACTORS = {
    "CohereAsrFeatureExtractor": 16000,
    "Speech2TextFeatureExtractor": 16000,
    "Wav2Vec2FeatureExtractor": 16000,
    "KyutaiSpeechToTextFeatureExtractor": 24000,
}
"""Of each model, its rate."""

SECONDS, CLIPS, CLIP_S = 60.0, 4, 20.0

_MOST = 1e-2
"""How far our features may be from transformers', as a share of their norm."""


def tasks(plan: Plan) -> list[Task]:
    """What there is to measure: each kind of file, a change of rate, each model's features."""
    if not plan.wants("host"):
        return []
    found: list[Task] = [(f"decode {kind}", functools.partial(decode, kind, plan)) for kind in MEDIA]
    found.append(("resample", functools.partial(resample, plan)))
    found += [(f"features {name}", functools.partial(features, name, plan)) for name in EXTRACTORS]
    return found


def decode(kind: str, plan: Plan) -> Iterator[Row]:
    """A stereo file in memory to mono samples at 16 kHz."""
    seconds = plan.shrunk(SECONDS, 1.0)
    media = _encoded(*MEDIA[kind], seconds)
    run = functools.partial(fastspeech.load_audio, media, 16000)
    found = run()
    case = f"{seconds:g} s of stereo {kind} to 16 kHz"
    if abs(len(found) - 16000 * seconds) > 1600:  # mp3 and Opus pad their ends
        fault = f"{len(found)} samples where {16000 * seconds:g} were expected"
        yield {"kind": "host", "name": "load_audio", "case": case, "contender": "fastspeech", "fault": fault}
        return
    yield from _timed("load_audio", case, {"fastspeech": run}, seconds, plan)


def resample(plan: Plan) -> Iterator[Row]:
    """Mono samples from 44.1 kHz to 16 kHz, against torchaudio where it is installed."""
    from fastspeech.audio.load import resample as ours

    seconds = plan.shrunk(SECONDS, 1.0)
    samples = _sound(seconds, 44100)[0]
    contenders: dict[str, Function] = {"fastspeech": functools.partial(ours, samples, 44100, 16000)}
    if importlib.util.find_spec("torchaudio") is not None:
        import torchaudio

        given = torch.from_numpy(samples)
        contenders["torchaudio"] = functools.partial(torchaudio.functional.resample, given, 44100, 16000)
    yield from _timed("resample", f"{seconds:g} s from 44.1 to 16 kHz", contenders, seconds, plan)


def features(name: str, plan: Plan) -> Iterator[Row]:
    """Clips to a model's inputs on the CPU, and on the device where the extractor can, against transformers'."""
    rate, seconds = EXTRACTORS[name], plan.shrunk(CLIP_S, 1.0)
    clips = [_sound(seconds, rate, seed)[0] for seed in range(CLIPS)]
    case = f"{CLIPS} x {seconds:g} s"
    contenders: dict[str, Function] = {}
    libraries = ["fastspeech"] + ["transformers"] * (importlib.util.find_spec("transformers") is not None)
    for library in libraries:
        try:
            extractor = getattr(importlib.import_module(library), name)()
        except ImportError as missing:  # of a package that some versions of transformers need for it
            reason = " ".join(str(missing).split())[:300]
            yield {"kind": "host", "name": name, "case": case, "contender": library, "left_out": reason}
            continue
        call = functools.partial(extractor, clips, sampling_rate=rate, padding=True, return_tensors="pt")
        contenders[library] = call
        if plan.device.type == "cuda" and name == "CohereAsrFeatureExtractor":
            contenders[f"{library} on the GPU"] = functools.partial(call, device=str(plan.device))
    if "transformers" in contenders:
        ours, theirs = (_main(contenders[library]()).double() for library in libraries)
        error = (ours - theirs).norm() / theirs.norm() if ours.shape == theirs.shape else torch.tensor(torch.inf)
        if not error <= _MOST:
            fault = f"differ from transformers' by {error:.3g} of their norm"
            yield {"kind": "host", "name": name, "case": case, "contender": "fastspeech", "fault": fault}
            return
    yield from _timed(name, case, contenders, CLIPS * seconds, plan)


def _timed(name: str, case: str, contenders: dict[str, Function], seconds: float, plan: Plan) -> Iterator[Row]:
    on_gpu = {key: function for key, function in contenders.items() if key.endswith("GPU")}
    on_host = {key: function for key, function in contenders.items() if key not in on_gpu}
    taken = interleaved(on_host, torch.device("cpu"), plan.budget_s)
    if on_gpu:
        taken |= interleaved(on_gpu, plan.device, plan.budget_s)
    for contender, times in taken.items():
        what = {"kind": "host", "name": name, "case": case, "contender": contender, "timing": ""}
        yield record.row(times, **what, realtime=seconds / times.median)


def _main(made: Any) -> torch.Tensor:
    return next(made[key] for key in ("input_features", "input_values") if key in made)


def _sound(seconds: float, rate: int, seed: int = 0) -> NDArray[np.float32]:
    """(2, n): noise that swells and falls as syllables do."""
    n = round(seconds * rate)
    noise = np.random.default_rng(seed).standard_normal((2, n))
    swell = 0.1 * np.sin(2 * np.pi * 2 * np.arange(n) / rate) ** 2
    return (noise * swell).astype(np.float32)


def _encoded(container: str, codec: str, rate: int, seconds: float) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(_sound(seconds, rate), format="fltp", layout="stereo")
        frame.sample_rate = rate
        converter = av.AudioResampler(format=stream.format, layout="stereo", rate=rate)
        for part in [*converter.resample(frame), *converter.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()
