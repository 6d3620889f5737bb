"""The command `fastspeech`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from fastspeech import __version__
from fastspeech.transcripts import FORMATS, Transcript, to_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 1 where anything failed."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="fastspeech", description="Speech recognition on fused GPU kernels.")
    parser.add_argument("--version", action="version", version=f"fastspeech {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_transcribe(commands)
    _add_doctor(commands)
    _add_parity(commands)
    _add_bench(commands)
    return parser


def _add_transcribe(commands: Any) -> None:
    parser = commands.add_parser(
        "transcribe",
        help="write down what is said in audio or video files",
        description="Write down what is said in audio or video files: to standard output, or to DIR/<name>.<format> "
        "for each with --output-dir. A file that cannot be transcribed costs a line on standard error and "
        "the exit status 1; the others are finished.",
    )
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="anything ffmpeg reads, or an http(s) URL")
    add("--model", help="folder or hub id of a checkpoint (default: the embedded demo of twenty English words)")
    add("--language", help="code of the language that is spoken, for a model of several (default: en)")
    add("--no-punctuation", action="store_true", help="no capitals and punctuation, for a model with the choice")
    add("--format", choices=FORMATS, default="txt", help="of the output (default: %(default)s)")
    add("--output-dir", type=Path, metavar="DIR", help="write one file for each input there")
    add("--word-timestamps", action="store_true", help="the times of words, for json, srt and vtt")
    add("--confidence", action="store_true", help="the probability of each token, for json")
    add("--device", type=_device, help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    add(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16"],
        help="of the model (default: the checkpoint's on a GPU, float32 on a CPU)",
    )
    add("--batch-size", type=_positive, default=8, metavar="N", help="chunks decoded at once (default: %(default)s)")
    add("--max-new-tokens", type=_positive, metavar="N", help="most tokens of a chunk of up to 35 s (default: 500)")
    add(
        "--max-tokens-per-second",
        type=_rate,
        metavar="N",
        help="most tokens of a chunk for each of its seconds; inf for no limit (default: 6.5 for Moonshine, 13 where "
        "its language needs it, inf for others)",
    )
    live = parser.add_argument_group("live")
    live.add_argument(
        "--stream",
        action="store_true",
        help="print words as they are recognised in one FILE, at the pace it was spoken, or in standard input (-); "
        "needs a Kyutai STT checkpoint; json is then an object a line for each event",
    )
    live.add_argument("--full-speed", action="store_true", help="hear a file as fast as the model can")
    live.add_argument(
        "--input-format", choices=["s16le", "f32le"], help="of the raw mono samples in standard input (default: s16le)"
    )
    live.add_argument("--input-rate", type=_positive, metavar="HZ", help="of standard input (default: 24000)")
    parser.set_defaults(run=_transcribe, parser=parser)


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say what this machine has, and what serves each op on it",
        description="Say what this machine has, and op by op which implementation serves it and why the others do not.",
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=_doctor)


def _add_parity(commands: Any) -> None:
    parser = commands.add_parser(
        "parity",
        help="hold this installation's kernels and models to their oracles",
        description="Hold every op, by every implementation this machine can run, to its float64 reference, and random "
        "models to their float64 results and to transformers where it is installed. A line each, with the error "
        "measured and the error allowed; the exit status is 1 where anything failed.",
    )
    add = parser.add_argument
    add("--device", type=_device, help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    add("--backend", choices=["reference", "triton", "cuda"], help="one implementation (default: all)")
    add("--op", action="append", default=[], metavar="NAME", help="one op; may be repeated")
    add("--model", action="append", default=[], metavar="NAME", help="one model; may be repeated")
    add("--seed", type=int, default=0, help="of inputs and weights; a failure repeats with it (default: %(default)s)")
    add("--json", action="store_true", help="for machines")
    add("--junit", type=Path, metavar="FILE", help="write JUnit XML there")
    parser.set_defaults(run=_parity, parser=parser)


def _add_bench(commands: Any) -> None:
    from fastspeech.bench import cli

    parser = commands.add_parser(
        "bench",
        help="measure ops and models on this machine",
        description="Measure every op against its reference and its peers, and every model against transformers, in "
        "turn and only where results agree; write the record, tables and plots of it.",
    )
    cli.add_arguments(parser)
    parser.set_defaults(run=lambda options: cli.run(parser, options))


def _transcribe(options: argparse.Namespace) -> int:
    if options.stream:
        return _stream(options)
    for name in _LIVE_ONLY:
        if getattr(options, name):
            options.parser.error(f"{_flag(name)} needs --stream")
    if options.format in ("srt", "vtt") and len(options.files) > 1 and options.output_dir is None:
        options.parser.error(f"several files as {options.format} need --output-dir")
    from tqdm import tqdm

    from fastspeech.pipelines import pipeline

    asked = {
        "language": options.language,
        "punctuation": False if options.no_punctuation else None,
        "max_new_tokens": options.max_new_tokens,
        "word_timestamps": options.word_timestamps,
        "confidence": options.confidence,
    }
    rate = {} if options.max_tokens_per_second is None else {"max_tokens_per_second": options.max_tokens_per_second}
    with tqdm(total=0, disable=None, bar_format="{percentage:3.0f}% |{bar}| {n} s of {total} s, {elapsed}") as bar:

        def progress(done: float, loaded: float) -> None:
            bar.total = round(loaded)
            bar.update(round(done) - bar.n)

        try:
            if options.output_dir is not None:
                options.output_dir.mkdir(parents=True, exist_ok=True)
            recognise = pipeline(
                model=options.model,
                device=options.device,
                dtype=options.dtype,
                batch_size=options.batch_size,
                **rate,
            )
            given = {name: value for name, value in asked.items() if value is not None}
            transcripts = recognise.transcripts(options.files, progress=progress, **given)
        except (ValueError, OSError) as error:
            _complain(str(error))
            return 1
        paths = output_paths(options.files, options.output_dir, options.format) if options.output_dir else None
        failures = 0
        for number, transcript in enumerate(transcripts):
            fault = transcript.error
            if fault is None:
                fault = _write(transcript, options, paths[number] if paths else None)
            if fault is not None:
                failures += 1
                _complain(fault)
            elif transcript.truncated:
                _complain(
                    f"{transcript.file}: cut by the limit of new tokens, words are missing "
                    "(--max-new-tokens, --max-tokens-per-second)"
                )
        return 1 if failures else 0


_LIVE_ONLY = ("full_speed", "input_format", "input_rate")

_NOT_LIVE = (
    "language",
    "no_punctuation",
    "output_dir",
    "word_timestamps",
    "confidence",
    "max_new_tokens",
    "max_tokens_per_second",
)


def _stream(options: argparse.Namespace) -> int:
    fail = options.parser.error
    if len(options.files) > 1:
        fail("--stream hears one file")
    if options.format not in ("txt", "json"):
        fail(f"--stream writes txt or json, not {options.format}")
    if options.model is None:
        fail("--stream needs --model, a Kyutai STT checkpoint")
    for name in _NOT_LIVE:
        if getattr(options, name):
            fail(f"{_flag(name)} does not go with --stream")
    (source,) = options.files
    for name in ("input_format", "input_rate") if source != "-" else ("full_speed",):
        if getattr(options, name):
            fail(f"{_flag(name)} is not for {'standard input' if source == '-' else 'a file'}")
    from fastspeech.cli_stream import stream

    try:
        stream(
            source,
            options.model,
            as_json=options.format == "json",
            full_speed=options.full_speed,
            encoding=options.input_format or "s16le",
            rate=options.input_rate or 24000,
            device=options.device,
            dtype=options.dtype,
        )
    except (ValueError, OSError) as error:
        _complain(str(error))
        return 1
    return 0


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def output_paths(files: Sequence[str], folder: Path, extension: str) -> list[Path]:
    """Where the transcript of each file goes: `folder`/<stem>.<extension>, and <stem>-2 and so on where a name is taken
    by an earlier file of the same stem.
    """
    taken: set[str] = set()
    paths = []
    for file in files:
        stem = PurePosixPath(urlsplit(file).path).stem if "://" in file else Path(file).stem
        name = stem = stem or "audio"
        number = 1
        while name.casefold() in taken:  # some file systems take capitals for the same
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        paths.append(folder / f"{name}.{extension}")
    return paths


def _write(transcript: Transcript, options: argparse.Namespace, path: Path | None) -> str | None:
    """Puts a transcript where it belongs; returns what went wrong."""
    if path is None:
        text = to_json(transcript, indent=None) if options.format == "json" else FORMATS[options.format](transcript)
        several = len(options.files) > 1 and options.format == "txt"
        _print(f"{transcript.file}: {text}" if several else text)
        return None
    try:
        path.write_text(FORMATS[options.format](transcript), encoding="utf-8", newline="\n")
    except OSError as error:
        return f"{transcript.file}: {path} cannot be written: {error.strerror}"
    return None


def _print(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(text, end="", file=sys.stdout)


def _complain(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"fastspeech: {' '.join(text.split())}", file=sys.stderr)


def _doctor(options: argparse.Namespace) -> int:
    from fastspeech.doctor import examine, healthy, report

    findings = examine()
    print(json.dumps(findings, indent=2) if options.json else report(findings))
    return 0 if healthy(findings) else 1


def _parity(options: argparse.Namespace) -> int:
    import torch
    from tqdm import tqdm

    from fastspeech.parity import run, units
    from fastspeech.parity.report import line, to_json, write_junit

    device = str(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        chosen = units(device, options.backend, options.op, options.model, options.seed)
    except ValueError as error:
        options.parser.error(str(error))
    skipped = [(unit.name, unit.refusal) for unit in chosen if unit.refusal is not None]
    results = []
    # Kernels that share a GPU with others are no slower to check one by one.
    workers = 1 if device.startswith("cuda") else None
    with tqdm(total=len(chosen) - len(skipped), disable=None, unit="unit") as bar:
        for _, found in run(chosen, workers):
            results += found
            bar.update()
            if not options.json:
                for result in found:
                    _print(line(result) + "\n")
    if options.junit is not None:
        write_junit(results, skipped, options.junit)
    if options.json:
        print(to_json(results, skipped))
    else:
        for name, why in skipped:
            _print(f"skip {name}: {why}\n")
        failed = sum(not result.ok for result in results)
        _print(f"{len(results) - failed} passed, {failed} failed, {len(skipped)} skipped\n")
    return 0 if results and all(result.ok for result in results) else 1


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _rate(text: str) -> float:
    rate = float(text)
    if not rate > 0:
        raise ValueError
    return rate


def _device(text: str) -> Any:
    import torch

    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no device; cpu, cuda and cuda:N are") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"there is no {text} here ({torch.cuda.device_count()} GPUs)")
    return device
