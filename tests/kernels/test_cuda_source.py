"""The CUDA sources without a GPU: compiled for the CPU, where a kernel's threads take turns, held to the records."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastspeech.kernels import OPS
from fastspeech.kernels.spec import all_specs

HERE = Path(__file__).parent / "cuda_on_cpu"
CSRC = Path(__file__).parents[2] / "csrc"
COMPILER = shutil.which("g++")
SERVED = [
    spec.name for spec in all_specs() if any(i.name == "cuda" and i.on_cuda for i in OPS[spec.name].implementations)
]
VERIFY = """
import sys
from pathlib import Path
from fastspeech.kernels import extension, verify
extension.LIBRARY, extension.BUILT = Path(sys.argv[1]), True
sys.exit(verify.main(["--backend", "cuda", "--op", sys.argv[2], "--json"]))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    made = tmp_path_factory.mktemp("cuda_on_cpu")
    torch_at = Path(torch.__file__).parent
    flags = ["-O1", "-std=c++20", "-fPIC", "-w", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    include = [f"-I{HERE}", f"-I{torch_at / 'include'}"]
    # What has a CUDA side is made of that, in ops.cpp here; ops_cuda.cpp registers it for GPUs.
    of_cpu = [s for s in CSRC.glob("*.cpp") if not s.with_suffix(".cu").exists() and s.stem != "ops_cuda"]
    for source in (HERE / "ops.cpp", *of_cpu):
        target = made / f"{source.parent.name}-{source.stem}.o"
        subprocess.run([COMPILER, *flags, *include, "-c", source, "-o", target], check=True)
    libraries = [f"-L{torch_at / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lpthread"]
    subprocess.run([COMPILER, "-shared", "-o", made / "library.so", *made.glob("*.o"), *libraries], check=True)
    return made / "library.so"


@pytest.mark.skipif(COMPILER is None, reason="no g++")
@pytest.mark.parametrize("op", SERVED)
def test_the_cuda_side_holds_as_far_as_a_cpu_can_tell(op, library):
    command = [sys.executable, "-c", VERIFY, str(library), op]
    done = subprocess.run(command, capture_output=True, text=True)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) > 10, done.stderr
    assert not [record for record in records if record["fault"]]
