"""The benchmarks: right before fast, every sample kept, a slow-down told from noise."""

import contextlib
import json
import random
import sys
import time
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import fastspeech
from fastspeech.bench import aims, cli, compare, counts, growth, kernels, models, record, streams, timing
from fastspeech.bench.plan import Plan
from fastspeech.cli import main
from fastspeech.kernels.spec import load_spec

CPU = torch.device("cpu")
CEILINGS = {"copy_bytes_per_s": 1e10, "flops_per_s": {"float32": 1e11}}
QUICK = ["--no-compile", "--budget", "0.02"]


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A record of one op."""
    monkeypatch.setattr("fastspeech.bench.ceilings.measure", lambda device: CEILINGS)
    path = tmp_path / "results" / "here" / "one.json"
    arguments = ["bench", "kernels", "--device", "cpu", "--only", "cmvn", *QUICK, "--output", str(path)]
    assert main(arguments) == 0
    return path


def test_a_record_holds_what_a_reader_needs(measured: Path) -> None:
    found = json.loads(measured.read_text())
    assert found["versions"]["torch"] == torch.__version__ and found["device"]["cores"]
    assert found["runs"][0]["commit"] and found["runs"][0]["command"].startswith("python -m bench")
    cases = [case.name for case in load_spec("cmvn").cases if case.kind == "model"]
    assert [row["case"] for row in found["rows"] if row["contender"] == "reference"] == cases
    for row in found["rows"]:
        low, high = row["quartiles_s"]
        assert len(row["samples_s"]) >= 3 and low <= row["median_s"] <= high
        assert row["bound_share"] == pytest.approx(row["bound_s"] / row["median_s"])


def test_what_is_there_is_not_measured_again(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads(measured.read_text())
    arguments = ["kernels", "--device", "cpu", "--only", "cmvn", *QUICK, "--output", str(measured)]
    assert cli.main([*arguments, "--resume"]) == 0
    after = json.loads(measured.read_text())
    assert after["rows"] == before["rows"] and len(after["runs"]) == 2


def test_a_record_of_another_installation_is_not_gone_on_with(
    measured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(measured.read_text())
    found["versions"]["torch"] = "1.0"
    record.save(found, measured)
    with pytest.raises(SystemExit):
        cli.main(["kernels", "--device", "cpu", "--only", "cmvn", *QUICK, "--output", str(measured), "--resume"])
    assert "other versions" in capsys.readouterr().err


def test_what_was_done_before_an_interruption_is_kept(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads(measured.read_text())["rows"]
    real = kernels.measure
    cases = []

    def interrupted(spec, case, *rest):  # type: ignore[no-untyped-def]
        cases.append(case.name)
        if len(cases) == 2:
            raise KeyboardInterrupt
        return real(spec, case, *rest)

    monkeypatch.setattr(kernels, "measure", interrupted)
    arguments = ["kernels", "--device", "cpu", "--only", "cmvn", *QUICK, "--output", str(measured)]
    assert cli.main(arguments) == 130
    kept = json.loads(measured.read_text())["rows"]
    assert {row["case"] for row in kept} == {cases[0]} and len(kept) == len(before) // 2
    assert cli.main([*arguments, "--resume"]) == 0
    assert {row["case"] for row in json.loads(measured.read_text())["rows"]} == {row["case"] for row in before}


def test_what_a_limit_leaves_is_for_the_next_run(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["kernels", "--device", "cpu", "--only", "cmvn", *QUICK, "--output", str(measured)]
    assert cli.main([*arguments, "--limit", "0"]) == 0
    assert "2 tasks left by --limit" in capsys.readouterr().out
    found = json.loads(measured.read_text())
    assert not found["rows"] and len(found["waiting"]) == 2
    assert cli.main(["report", "--results", str(measured.parents[1])]) == 0
    assert f"- {found['waiting'][0]}" in (measured.parents[1] / "README.md").read_text()
    assert cli.main([*arguments, "--resume"]) == 0
    assert not json.loads(measured.read_text())["waiting"]


def test_the_report_has_tables_and_plots(measured: Path) -> None:
    results = measured.parents[1]
    assert cli.main(["report", "--results", str(results)]) == 0
    page = (results / "README.md").read_text()
    assert "| cmvn | " in page and "](here/roofline.svg)" in page
    assert (results / "here" / "roofline.svg").read_text().count("<path") > 5


def test_a_wrong_contender_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = load_spec("residual_layer_norm")
    case = next(case for case in spec.cases if case.kind == "ordinary")

    def wrong(inputs: dict) -> timing.Function:
        return lambda: tuple(1.001 * output for output in spec.run(inputs))

    monkeypatch.setitem(kernels.PEERS, spec.name, {"wrong": wrong})
    rows = list(kernels.measure(spec, case, torch.float32, Plan(CPU, budget_s=0.01, compiled=False), CEILINGS))
    assert ["errs by" in row.get("left_out", "") for row in rows if row["contender"] == "wrong"] == [True]
    assert all("samples_s" not in row for row in rows if row["contender"] == "wrong")
    assert any("samples_s" in row for row in rows if row["contender"] == "reference")


def _flash_attn_func(q, k, v, softmax_scale: float, causal: bool):  # type: ignore[no-untyped-def]
    assert q.is_contiguous() and q.shape[3] % 8 == 0
    sides = (side.transpose(1, 2) for side in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(
        *sides, scale=softmax_scale, is_causal=causal, enable_gqa=q.shape[2] != k.shape[2]
    )
    return out.transpose(1, 2)


@pytest.mark.parametrize("name", kernels.PEERS)
def test_peers_compute_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    package = ModuleType("flash_attn")
    package.__spec__, package.flash_attn_func = ModuleSpec("flash_attn", None), _flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    spec = load_spec(name)
    seen = set()
    with torch.no_grad():
        for case in spec.cases:
            if case.kind not in ("ordinary", "odd"):
                continue
            dtype = torch.bfloat16 if name == "rope_attention" else torch.float32
            plan = Plan(CPU, budget_s=0.0, compiled=False)
            rows = list(kernels.measure(spec, case, dtype, plan, CEILINGS))
            assert not [row for row in rows if "samples_s" not in row]
            seen |= {row["contender"] for row in rows}
    assert seen >= kernels.PEERS[name].keys()


def test_functions_are_timed_in_turn() -> None:
    order: list[str] = []
    functions = {name: lambda name=name: (order.append(name), time.sleep(0.001)) for name in "ab"}
    # A budget that one round exceeds is for three.
    taken = timing.interleaved(functions, CPU, 0)
    assert all(0.001 <= times.median < 0.1 and len(times.samples) == 3 for times in taken.values())
    assert order[-6:] == list("ab" * 3)


def test_a_seeded_slow_down_is_told_from_noise(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(measured.read_text())
    chance = random.Random(0)
    noisy, slow = (json.loads(measured.read_text()) for _ in range(2))
    for number, row in enumerate(found["rows"]):
        row["samples_s"] = [1e-3 * chance.gauss(1, 0.03) for _ in range(50)]
        noisy["rows"][number]["samples_s"] = [1e-3 * chance.gauss(1, 0.03) for _ in range(50)]
        factor = 1.12 if number == 0 else 1.0
        slow["rows"][number]["samples_s"] = [factor * 1e-3 * chance.gauss(1, 0.03) for _ in range(50)]
    paths = [measured.with_name(name) for name in ("before.json", "noisy.json", "slow.json")]
    for path, content in zip(paths, (found, noisy, slow), strict=True):
        record.save(content, path)
    assert main(["bench", "--compare", str(paths[0]), str(paths[1])]) == 0
    capsys.readouterr()
    assert main(["bench", "--compare", str(paths[0]), str(paths[2])]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith("slower")]) == 1 and "cmvn" in lines[0]


def test_an_interval_covers_the_true_ratio() -> None:
    chance = random.Random(1)
    hits = 0
    for _ in range(40):
        first, second = ([scale * chance.gauss(1, 0.1) for _ in range(30)] for scale in (1.0, 1.2))
        found = compare.change((), first, second)
        hits += found.low <= 1.2 <= found.high
    assert hits >= 34


def grown() -> list[dict]:
    rows = [
        {"name": "m", "part": "token", "contender": "us", "batch": 1, "seconds": s, "median_s": 0.1 * s**1.5}
        for s in (5, 10, 40)
    ]
    flat = [{**rows[0], "batch": batch, "median_s": 1.0 + 0.01 * (batch == 8)} for batch in (1, 8, 64)]
    return rows + flat[1:]


def test_exponents_are_those_of_the_points() -> None:
    along = {found.along: found for found in growth.fitted(grown())}
    assert along["seconds"].exponent == pytest.approx(1.5) and along["seconds"].fit == pytest.approx(1)
    assert [x for x, _ in along["batch"].points] == [1, 8, 64]
    # Two lengths, or a range of two, give none.
    for too_few in (grown()[:2], [*grown()[:2], {**grown()[0], "seconds": 7}]):
        assert not list(growth.fitted(too_few))


def test_an_exponent_of_what_hardly_varies_has_no_fit() -> None:
    rows = [{**grown()[0], "batch": batch, "median_s": 1 + 0.01 * (batch == 8)} for batch in (1, 8, 64)]
    (found,) = growth.fitted(rows)
    assert found.fit is None and abs(found.exponent) < 0.01


class Gpu:
    """A GPU that does one thing after another, whose clock only what is launched moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_ms, self.log, gpu = 0.0, [], self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                self.at = gpu.now_ms

            def elapsed_time(self, end: "Event") -> float:
                assert gpu.log[-1] == "synchronize", "read before the GPU had come to it"
                return end.at - self.at

        class Flush:
            def sum(self) -> None:
                gpu.launch("flush", 250.0)

        class Graph:
            def __enter__(self) -> None:
                gpu.log.append("capture")

            def __exit__(self, *error: object) -> None:
                gpu.calls = gpu.log[gpu.log.index("capture") + 1 :]
                gpu.log.append("captured")

            def replay(self) -> None:
                for call in gpu.calls:
                    gpu.launch(call, 3.0)

        class Stream:
            def __init__(self, device: torch.device) -> None:
                pass

            def wait_stream(self, other: "Stream") -> None:
                gpu.log.append("wait")

        made = Graph()
        for name, value in {
            "Event": Event,
            "Stream": Stream,
            "CUDAGraph": lambda: made,
            "graph": lambda graph, stream: graph,
            "stream": lambda stream: contextlib.nullcontext(),
            "current_stream": Stream,
            "synchronize": lambda device: gpu.log.append("synchronize"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(timing, "_flush", lambda device: Flush())

    def launch(self, what: str, ms: float) -> None:
        self.log.append(what)
        self.now_ms += ms

    def function(self) -> None:
        self.launch("call", 3.0)


CUDA = torch.device("cuda", 0)


def test_a_sample_on_a_gpu_is_what_lies_between_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    (warm,) = timing.interleaved({"f": gpu.function}, CUDA, 0).values()
    assert warm.samples == [3e-3] * 3 and "flush" not in gpu.log
    gpu.log.clear()
    (cold,) = timing.interleaved({"f": gpu.function}, CUDA, 0, cold=True).values()
    # The read of the flush lies in front of the sample, and nothing waits between it and the call.
    assert cold.samples == [3e-3] * 3
    assert gpu.log[:4] == ["synchronize", "flush", "call", "synchronize"]


def test_a_graph_is_captured_warm_and_its_calls_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)
    taken = kernels._timings({"f": gpu.function}, Plan(CUDA, budget_s=0.0))
    assert {name: times["f"].median for name, times in taken.items()} == pytest.approx(
        {"warm": 3e-3, "cold": 3e-3, "graph": 3e-3}
    )
    capture = gpu.log.index("capture")
    assert gpu.log[capture - 6 : capture] == ["wait", "call", "call", "call", "wait", "synchronize"]
    assert gpu.log[capture + 1 :].index("captured") == kernels.GRAPH_CALLS


def test_what_no_graph_can_hold_has_no_graph_time(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu(monkeypatch)

    def asks() -> None:
        if gpu.log[-1] == "capture":
            raise RuntimeError("operation not permitted when stream is capturing")
        gpu.function()

    taken = kernels._timings({"asks": asks, "f": gpu.function}, Plan(CUDA, budget_s=0.0))
    assert set(taken["graph"]) == {"f"} and set(taken["cold"]) == {"asks", "f"}


def test_memory_and_launches_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [100]
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: held.append(100))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: max(held))
    assert counts.peak(lambda: held.append(350), CUDA) == 250

    cpu, cuda = torch.autograd.DeviceType.CPU, torch.autograd.DeviceType.CUDA
    events = [("aten::add", cpu), ("cudaLaunchKernel", cpu), ("add_kernel", cuda), ("cudaGraphLaunch", cpu)]
    events += [("gemm", cuda), ("norm", cuda), ("cudaMemcpyAsync", cpu), ("Memcpy DtoH", cuda)]

    class Profile:
        def __init__(self, activities: list) -> None:
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self) -> "Profile":
            return self

        def __exit__(self, *error: object) -> None:
            pass

        def events(self) -> list:
            return [SimpleNamespace(name=name, device_type=kind) for name, kind in events]

    monkeypatch.setattr("torch.profiler.profile", Profile)
    assert counts.launches(lambda: None, CUDA) == {"launches": 3, "kernels": 4}
    events.clear()
    assert counts.launches(lambda: None, CUDA) == {}


def test_clocks_are_of_the_device_and_may_be_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="0a-1b"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record.clocks(CUDA) == {} == record.clocks(CPU)
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\n[ "$3" = --id=GPU-0a-1b ] && echo "1980 MHz, 1980 MHz, 3201 MHz"\n')
    tool.chmod(0o755)
    found = record.clocks(CUDA)
    assert found == {"clocks.sm": "1980 MHz", "clocks.max.sm": "1980 MHz", "clocks.mem": "3201 MHz"}


def test_peaks_and_operators_of_a_call() -> None:
    megabytes = counts.peak(lambda: torch.ones(10_000_000).add_(1), CPU)
    assert megabytes is None or 39e6 < megabytes < 60e6
    assert counts.dispatched(lambda: torch.ones(3).view(3, 1) + 1) == 2


def test_the_most_streams_that_hold_are_found() -> None:
    asked = []

    def probe(streams: int) -> dict:
        asked.append(streams)
        return {"fails": "take 90 ms"} if streams > 1234 else {"p99_s": streams / 20000}

    held, figures = streams.most(probe, 64, 1 << 14)
    assert 1234 * (1 - streams.CLOSE) <= held <= 1234 and figures["p99_s"] == held / 20000
    assert figures["more"].endswith("take 90 ms") and len(asked) < 14
    assert streams.most(lambda n: {"fails": "take 90 ms"}, 4, 64) == (0, {"more": "1 take 90 ms"})
    assert streams.most(lambda n: {"p99_s": 0.01}, 4, 64)[0] == 64


def test_streams_that_come_late_or_do_not_fit_do_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "FRAMES", 100)
    monkeypatch.setattr(streams, "DEADLINE_S", 0.005)
    now = [0.0]
    monkeypatch.setattr(streams, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    class Side:
        def __init__(self, late: int) -> None:
            self.late, self.frames = late, 0

        def frame(self) -> None:
            self.frames += 1
            # The first three are to warm up.
            now[0] += 0.006 if 3 < self.frames <= 3 + self.late else 0.004

    plan = Plan(CPU)
    assert streams._probe(Side, plan, 0)["p99_s"] < 0.005
    assert streams._probe(Side, plan, 1)["p99_s"] < 0.005
    assert "take" in streams._probe(Side, plan, 2)["fails"]

    def too_many(count: int) -> Side:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate")

    assert "memory" in streams._probe(too_many, plan, 1)["fails"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> str:
    """A model that takes no time, in place of all others."""
    size = models.Size("moonshine", ("cpu",), models._REHEARSED["moonshine"], (1, 8, 64), (1.0,), {"cpu": 3})
    monkeypatch.setattr(models, "SIZES", {"tiny": size})
    models._pair.cache_clear()
    return "tiny"


def of_models(**options: object) -> list[dict]:
    plan = Plan(CPU, budget_s=0.0, compiled=False, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        return [row for _, task in models.tasks(plan) for row in task()]


def test_a_batch_that_takes_too_long_is_left_out_and_said_so(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setattr(models, "_predicted", lambda size, ours, theirs, ways, batch, *rest: 10.0 * batch)
    rows = of_models(longest_s=100.0)
    parts = {"encoder", "token", "whole"}
    for batch, more in ((1, {"transformers eager"}), (8, set())):
        taken = [row for row in rows if row["batch"] == batch]
        ways = {"fastspeech", "transformers sdpa"} | more
        assert {(row["part"], row["contender"]) for row in taken} == {(p, w) for p in parts for w in ways}
        assert all(len(row["samples_s"]) >= 3 and row["dispatched"] > 1 and row["error"] < 1e-3 for row in taken)
        texts = [row for row in taken if row["part"] == "whole" and row["contender"] != "fastspeech"]
        assert {row["agreement"] for row in texts} == {1}
    (left,) = [row for row in rows if row["batch"] == 64]
    assert "predicted to take 640 s" in left["left_out"] and "samples_s" not in left


def test_a_model_that_says_something_else_gets_no_time(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    real = fastspeech.from_transformers

    def spoiled(theirs: object) -> object:
        ours = real(theirs)
        ours.proj_out.weight = torch.nn.Parameter(1.01 * ours.proj_out.weight)
        return ours

    monkeypatch.setattr(fastspeech, "from_transformers", spoiled)
    rows = of_models(longest_s=0.0)
    models._pair.cache_clear()
    assert all("logits err" in row["fault"] for row in rows if row["batch"] == 1)
    assert not any("samples_s" in row for row in rows)


def test_every_aim_finds_its_figure() -> None:
    rows = [
        {"kind": "op", "name": name, "case": case.name, "timing": "cold", "bound_share": 0.9, "part": None}
        for name, cases in aims.OP_CASES.items()
        for case in cases
    ]
    rows += [
        {"kind": "model", "name": name, "part": part, "batch": batch, "seconds": size.seconds[0], "realtime": 7000.0}
        for name, size in models.SIZES.items()
        for part in ("encoder", "token", "whole", *(["end to end"] * (size.extractor is not None)))
        for batch in size.batches
        if "cuda" in size.devices
    ]
    ours, theirs = ["triton", "fastspeech"], ["materialised bias", "flash SDPA alone", "transformers static"]
    timed = [{**row, "contender": name, "median_s": 2e-6} for row in rows for name in ours]
    timed += [{**row, "contender": name, "median_s": 8e-6} for row in rows for name in theirs]
    timed += [
        {"kind": "held", "name": name, "contender": contender, "streams": held}
        for name, size in streams.SIZES.items()
        for contender, held in (("transformers, model alone", 5000), ("fastspeech", 1000))
        if "cuda" in size.devices
    ]
    found = {aim["aim"]: aim for aim in aims.judged(timed)}
    assert len(found) == len(aims.AIMS) and all(aim["measured"] for aim in found.values())
    short = {name.partition(",")[0] + name.rpartition(",")[2]: aim for name, aim in found.items()}
    assert short["Moonshine tiny batch 1"]["met"] and short["Moonshine tiny batch 1"]["reached"] == 20
    assert not short["Kyutai 1B streams held at 80 ms"]["met"] and short["Kyutai 2.6B streams held at 80 ms"]["met"]
    assert not found["Speech2Text small, 5 beams, 10 s x 64, over transformers"]["met"]
    assert all(aim["measured"] is None and aim["met"] is None for aim in aims.judged([]))


def test_a_gpu_run_is_rehearsed_without_what_draws_and_tests(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    for name in ("matplotlib", "pytest_benchmark", "torchaudio", "soundfile"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("fastspeech.bench.ceilings.measure", lambda device: CEILINGS)
    sizes = {
        name: replace(size, batches=(1, 64), seconds=size.seconds[:1])
        for name, size in models.SIZES.items()
        if name in ("cohere 2B", "moonshine tiny")
    }
    monkeypatch.setattr(models, "SIZES", sizes)
    monkeypatch.setattr(streams, "SIZES", {"kyutai 1B": replace(streams.SIZES["kyutai 1B"], streams=(8,))})
    path = tmp_path / "rehearsal.json"
    for part in cli.PARTS:
        only = [f"--only={name}" for name in ("conformer_conv", "relpos_attention")] if part == "ops" else []
        arguments = ["gpu", "--rehearse", "--no-compile", "--part", part, *only, "--output", str(path), "--resume"]
        assert cli.main(arguments) == 0, capsys.readouterr().out
    found = json.loads(path.read_text())
    assert found["rehearsal"] and not [row for row in found["rows"] if "fault" in row]
    assert {row["kind"] for row in found["rows"]} == {"op", "model", "stream", "held", "host"}
    measured = {aim["aim"] for aim in found["aims"] if aim["measured"] is not None}
    assert {aim.partition(",")[0] for aim in measured} >= {"CohereAsr 2B", "Moonshine tiny", "Kyutai 1B"}
    assert "no measurements" in capsys.readouterr().out


def test_a_gpu_run_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("fastspeech.bench.ceilings.measure", lambda device: CEILINGS)
    with pytest.raises(SystemExit):
        cli.main(["gpu", "--device", "cpu", "--output", str(tmp_path / "none.json")])
    assert not (tmp_path / "none.json").exists()


def test_without_a_task_the_command_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench"])
    assert "kernels, models, gpu or report" in capsys.readouterr().err
