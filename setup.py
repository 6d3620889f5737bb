"""Packages whose source folder is not named after them, and the extension that csrc/ becomes.

`kernels/` is installed as `fastspeech.kernels`, and the extension lies in it: a library of ops on PyTorch's stable ABI,
without a Python symbol, for any Python and any torch from 2.11 on. It is built from the CPU side of the ops and,
where nvcc is on PATH, the CUDA side. FASTSPEECH_BUILD_CUDA says what must be:

    auto    (the default) both sides, the CPU side alone without nvcc, nothing without a C++ compiler
    0       the CPU side alone, nothing without a C++ compiler
    1       both sides, or the build fails
"""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

LIBRARY = "fastspeech.kernels.libfastspeech"
CPU_SOURCES = [
    "csrc/causal_conv.cpp",
    "csrc/cmvn.cpp",
    "csrc/conformer_conv.cpp",
    "csrc/log_mel.cpp",
    "csrc/ops.cpp",
    "csrc/paged_attention.cpp",
    "csrc/pages.cpp",
    "csrc/residual_vq.cpp",
    "csrc/rope_attention.cpp",
    "csrc/tiled_linear.cpp",
]
CUDA_SOURCES = ["csrc/ops_cuda.cpp", "csrc/pages.cu", "csrc/residual_vq.cu"]
TORCH_TARGET = "0x020b000000000000"  # 2.11
GPUS = (80, 90, 100)

COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
NVCC = shutil.which("nvcc")
WANTED = os.environ.get("FASTSPEECH_BUILD_CUDA", "auto")


def say(line: str) -> None:
    print(f"fastspeech: {line}", file=sys.stderr, flush=True)


def sources() -> list[str]:
    """What is wanted of csrc/ and can be built here."""
    if WANTED not in ("auto", "0", "1"):
        raise SystemExit(f"FASTSPEECH_BUILD_CUDA is auto, 0 or 1, not {WANTED!r}")
    missing = [
        what
        for what, there in (
            ("a C++ compiler", COMPILER),
            ("nvcc", NVCC),
            ("torch", find_spec("torch")),
            ("Linux", sys.platform == "linux"),
        )
        if not there
    ]
    if WANTED == "1" and missing:
        raise SystemExit(f"FASTSPEECH_BUILD_CUDA=1: the extension needs {' and '.join(missing)}")
    if set(missing) - {"nvcc"}:
        say(f"the extension is not built, for want of {' and '.join(missing)}; PyTorch and Triton serve its ops")
        return []
    if WANTED == "0" or missing:
        reason = "FASTSPEECH_BUILD_CUDA=0" if WANTED == "0" else "no nvcc on PATH"
        say(f"the extension is built without CUDA: {reason}")
        return CPU_SOURCES
    return [*CPU_SOURCES, *CUDA_SOURCES]


class BuildExtension(build_ext):
    """Compile csrc/ by hand: torch's own CUDAExtension wants a torch with CUDA, and the file named for one Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split("."))) + ".so"

    def build_extension(self, ext: Extension) -> None:
        try:
            self._build(ext, ext.sources)
        except CompileError as error:
            if WANTED != "auto" or not set(ext.sources) & set(CUDA_SOURCES):
                raise
            say(f"the extension is built without CUDA: {error}")
            self._build(ext, CPU_SOURCES)

    def _build(self, ext: Extension, sources: list[str]) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        objects = Path(self.build_temp)
        for folder in (target.parent, objects):
            folder.mkdir(parents=True, exist_ok=True)
        torch = Path(find_spec("torch").submodule_search_locations[0])
        made = []
        for source in sources:
            made.append(str(objects / (Path(source).name + ".o")))
            if source.endswith(".cu"):
                # No header of torch's, which nvcc would read for a minute.
                codes = [f"-gencode=arch=compute_{gpu},code=sm_{gpu}" for gpu in GPUS]
                codes.append(f"-gencode=arch=compute_{GPUS[-1]},code=compute_{GPUS[-1]}")
                host = [f"-ccbin={COMPILER}", "-Xcompiler=-fPIC,-fvisibility=hidden"]
                self._run(NVCC, "-std=c++17", "-O3", "--threads=0", *codes, *host, "-c", source, "-o", made[-1])
            else:
                flags = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]
                torch_flags = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", f"-I{torch / 'include'}"]
                self._run(COMPILER, *flags, *torch_flags, "-c", source, "-o", made[-1])
        # Libraries that are named are searched at run time although nothing of them is used here: in a torch with CUDA
        # libtorch brings the symbol that is weak in ops_cuda.cpp.
        needs = [f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-Wl,--as-needed"]
        if len(sources) > len(CPU_SOURCES):
            toolkit = self._toolkit()
            needs += [*(f"-L{toolkit / lib}" for lib in ("lib64", "lib")), "-lcudart_static", "-ldl", "-lrt"]
        hidden = ["-Wl,--exclude-libs,ALL", "-Wl,-z,defs"]
        self._run(COMPILER, "-shared", "-s", "-o", str(target), *made, *needs, "-lpthread", *hidden)

    def _run(self, *command: str) -> None:
        self.announce(" ".join(command), level=2)
        if subprocess.run(command).returncode:
            raise CompileError(f"{Path(command[0]).name} failed; its messages stand above")

    @staticmethod
    def _toolkit() -> Path:
        """nvcc's own folder, which the one on PATH may be a wrapper or a link to."""
        asked = subprocess.run([NVCC, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        top = next(line.partition("TOP=")[2] for line in asked.stderr.splitlines() if "TOP=" in line)
        return Path(top).resolve()


class Wheel(bdist_wheel):
    """A wheel for every Python: the extension, if there is one, knows none."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


built = sources()
kernels = ["fastspeech.kernels", *(f"fastspeech.kernels.{name}" for name in find_packages("kernels"))]

setup(
    packages=[*find_packages(include=["fastspeech", "fastspeech.*"]), *kernels, "fastspeech.bench"],
    package_dir={"fastspeech": "fastspeech", "fastspeech.kernels": "kernels", "fastspeech.bench": "bench"},
    package_data={"fastspeech": ["py.typed", "assets/*"]},
    ext_modules=[Extension(LIBRARY, built, optional=WANTED != "1")] if built else [],
    cmdclass={"build_ext": BuildExtension, "bdist_wheel": Wheel},
)
