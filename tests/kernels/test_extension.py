"""The extension: what is in the library, where it loads, and its CPU side against the references."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import triton

from fastspeech.kernels import OPS, extension, residual_vq, use_backend
from fastspeech.kernels.spec import all_specs
from fastspeech.kernels.verify import CHECKS, plan

ROOT = Path(__file__).parents[2]
SERVED = [spec for spec in all_specs() if any(i.name == "cuda" for i in OPS[spec.name].implementations)]
PLANNED = [
    pytest.param(check, subject, id=f"{check}-{subject}") for spec in SERVED for check, subject in plan(spec, "cuda")
]
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
needs_library = pytest.mark.skipif(not extension.BUILT and not COMPILER, reason="no C++ compiler, no extension")


@needs_library
def test_the_extension_is_built_where_it_can_be():
    assert extension.refusal("cpu") is None, "pip install -e . builds it"
    if shutil.which("nvcc"):
        assert extension.refusal("cuda") is None


@needs_library
@pytest.mark.parametrize(("check", "subject"), PLANNED)
def test_its_cpu_side_holds(check, subject):
    CHECKS[check](subject)


def test_tensors_that_it_cannot_take_are_refused():
    assert "these are on meta" in extension.refusal("meta")


@needs_library
def test_a_library_of_other_sources_is_not_used(monkeypatch, tmp_path):
    """Beside it stands a room whose op it was built without."""
    for served in ("page_fork", "later"):
        (tmp_path / served).mkdir()
        (tmp_path / served / "cuda.py").touch()
    (tmp_path / "lib.so").symlink_to(extension.LIBRARY)
    monkeypatch.setattr(extension, "LIBRARY", tmp_path / "lib.so")
    assert "without later; install fastspeech again" in extension._fault.__wrapped__()


@needs_library
def test_codes_do_not_depend_on_the_batch_nor_on_the_threads():
    generator = torch.Generator().manual_seed(0)
    latents, codebooks = torch.randn(2, 37, 100, generator=generator), torch.randn(5, 300, 100, generator=generator)
    threads = torch.get_num_threads()
    with use_backend("cuda"):
        together = residual_vq(latents, codebooks, [2, 3])
        for row in range(latents.shape[1]):
            assert torch.equal(residual_vq(latents[:, row : row + 1], codebooks, [2, 3])[0], together[row])
        try:
            torch.set_num_threads(3)
            assert torch.equal(residual_vq(latents, codebooks, [2, 3]), together)
        finally:
            torch.set_num_threads(threads)


@needs_library
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_what_is_not_finite_gives_indices_and_harms_no_other_vector(value):
    generator = torch.Generator().manual_seed(0)
    latents, codebooks = torch.randn(1, 6, 40, generator=generator), torch.randn(3, 50, 40, generator=generator)
    with use_backend("cuda"):
        clean = residual_vq(latents, codebooks, [3])
        latents[:, 2] = value
        codes = residual_vq(latents, codebooks, [3])
    assert ((codes >= 0) & (codes < 50)).all()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(codes[others], clean[others])


def readelf(option):
    return subprocess.check_output(["readelf", "-W", option, str(extension.LIBRARY)], text=True).splitlines()


def dynamic_symbols():
    """Of the library's dynamic symbols: name with version, binding, and whether it is defined there."""
    for line in readelf("--dyn-syms"):
        fields = line.split()
        if len(fields) >= 8 and fields[0][:-1].isdigit():
            yield fields[7], fields[4], fields[6] != "UND"


SYSTEM = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_")
OPTIONAL = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable"}
"""Profilers and transactional memory, which every library asks for and none needs."""


@needs_library
def test_nothing_outside_the_stable_abi_is_asked_for():
    wanted = {name: binding for name, binding, defined in dynamic_symbols() if not defined and not SYSTEM.search(name)}
    weak = {name for name, binding in wanted.items() if binding == "WEAK"}
    cuda = {"aoti_torch_get_current_cuda_stream"} if extension.refusal("cuda") is None else set()
    assert weak == OPTIONAL | cuda
    include = Path(torch.__file__).parent / "include/torch/csrc"
    stable = (include / "stable/c/shim.h").read_text()
    known = (include / "inductor/aoti_torch/c/shim.h").read_text() + stable.partition("VERSION_2_12_0")[0]
    strangers = {name for name in set(wanted) - OPTIONAL if not re.search(rf"\b{name}\b", known)}
    assert len(wanted) > 20
    assert not strangers, f"not of torch 2.11's stable ABI: {strangers}"


@needs_library
def test_only_the_c_and_cpp_runtimes_and_torch_are_needed():
    needed = {match[1] for line in readelf("-d") if (match := re.search(r"NEEDED.*\[(.*?)[.\]]", line))}
    assert {"libtorch", "libtorch_cpu"} <= needed
    assert needed <= {
        "libtorch",
        "libtorch_cpu",
        *("lib" + n for n in ["stdc++", "m", "gcc_s", "c", "dl", "rt", "pthread"]),
        "ld-linux-x86-64",
    }


@needs_library
def test_nothing_of_cuda_or_python_is_given_or_taken():
    for name, _, _ in dynamic_symbols():
        assert not re.match(r"_?Py|cuda|cu[A-Z]", name), name


@needs_library
def test_it_loads_in_a_python_that_knows_nothing_of_fastspeech():
    code = f"""
import sys, torch
torch.ops.load_library({str(extension.LIBRARY)!r})
codes = torch.empty(2, 1, dtype=torch.int64)
torch.ops.fastspeech_csrc.residual_vq(torch.eye(2)[None], torch.eye(2).flip(0)[None], [1], codes, None)
print(codes.flatten().tolist(), "fastspeech" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.stdout == "[1, 0] False\n", done.stderr


@pytest.mark.skipif(extension.refusal("cuda") is not None, reason="the extension has no CUDA side here")
def test_code_for_three_gpus_and_those_to_come_is_inside():
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    listed = subprocess.check_output([tool, "-lelf", "-lptx", extension.LIBRARY], text=True)
    sources = len(list((ROOT / "csrc").glob("*.cu")))
    kinds = re.findall(r"\.(sm_\d+\w*)\.(cubin|ptx)", listed)
    assert sorted(kinds) == sorted(
        [("sm_80", "cubin"), ("sm_90", "cubin"), ("sm_100", "cubin"), ("sm_100", "ptx")] * sources
    )


@pytest.mark.skipif(extension.refusal("cuda") is not None, reason="the extension has no CUDA side here")
def test_no_kernel_spills_its_registers():
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.check_output([tool, "-res-usage", extension.LIBRARY], text=True)
    found = re.findall(r"Function (\S+):\n\s*REG:(\d+) STACK:(\d+)", usage)
    assert len(found) >= 3 * 4
    for name, registers, stack in found:
        # sincosf keeps 28 bytes for angles beyond 1e5.
        assert int(stack) <= (32 if "append_token" in name else 8), name
        assert int(registers) <= 255, name


def plan_build(wanted, *tools, tmp_path):
    """What setup.py says where these are the only tools, and its exit status."""
    for tool in tools:
        (tmp_path / tool).symlink_to(shutil.which("true"))
    environment = {k: v for k, v in os.environ.items() if k != "CXX"}
    environment |= {"PATH": str(tmp_path), "FASTSPEECH_BUILD_CUDA": wanted}
    command = [sys.executable, "setup.py", "--version"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return [line for line in done.stderr.splitlines() if "extension" in line or "FASTSPEECH" in line], done.returncode


@pytest.mark.parametrize(
    ("wanted", "tools", "says"),
    [
        ("auto", ["c++", "nvcc"], []),
        ("auto", ["c++"], ["fastspeech: the extension is built without CUDA: no nvcc on PATH"]),
        ("0", ["c++", "nvcc"], ["fastspeech: the extension is built without CUDA: FASTSPEECH_BUILD_CUDA=0"]),
        ("auto", ["nvcc"], ["fastspeech: the extension is not built, for want of a C++ compiler"]),
        ("0", [], ["fastspeech: the extension is not built, for want of a C++ compiler"]),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(wanted, tools, says, tmp_path):
    lines, status = plan_build(wanted, *tools, tmp_path=tmp_path)
    assert status == 0
    assert [line.partition(" and nvcc")[0].partition(";")[0] for line in lines] == says


@pytest.mark.parametrize(
    ("wanted", "tools", "says"),
    [
        ("1", ["c++"], "FASTSPEECH_BUILD_CUDA=1: the extension needs nvcc"),
        ("1", ["nvcc"], "FASTSPEECH_BUILD_CUDA=1: the extension needs a C++ compiler"),
        ("yes", ["c++", "nvcc"], "FASTSPEECH_BUILD_CUDA is auto, 0 or 1, not 'yes'"),
    ],
)
def test_what_is_asked_for_and_cannot_be_built_fails(wanted, tools, says, tmp_path):
    assert plan_build(wanted, *tools, tmp_path=tmp_path) == ([says], 1)
