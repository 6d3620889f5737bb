#!/usr/bin/env bash
# Installs the checkout on a machine without network, into a Python that already has torch, triton and transformers:
#
#     bench/offline.sh WHEELS [PYTHON]
#
# WHEELS is a folder with wheels of what is missing there, made where there is a network by, for example,
#     pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 -d WHEELS av
# The extension is compiled against the torch that is there, where nvcc is on PATH. Then, in this order, a line a part:
#     python -m pytest -m gpu -n 12 -q tests/kernels/test_gpu.py           (one op: -k cmvn; -n needs pytest-xdist)
#     python -m pytest -m gpu -q tests --ignore tests/kernels              (graphs, streams, the engine)
#     python -m fastspeech parity --device cuda --model cohere_asr         (against transformers; and the other models)
#     bench/sanitize.sh FOLDER                                             (compute-sanitizer, until nothing is left)
#     python -m bench gpu --output RECORD --resume --part ops              (and cohere, small, kyutai, host)
# Most of the first part is compilation, on all cores. Without pytest `python -m fastspeech.kernels.verify --device cuda
# --op NAME` checks the same of one op, and several may run at once. A part of the sanitizer and of `bench gpu` ends
# within ten minutes, and what it leaves the same command does when it is called again. RECORD may be brought from one
# machine to the next; at home it goes into bench/results/<device>/, and `python -m bench report` draws it. `bench gpu`
# needs neither matplotlib nor pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=$1
python=${2:-python3}

if compgen -G "$wheels/*.whl" >/dev/null; then
    "$python" -m pip install -q --no-index --no-deps "$wheels"/*.whl
fi
"$python" -m pip install -q --no-index --no-deps --no-build-isolation -e .
"$python" - <<'END'
import importlib.util

needed = ("torch", "triton", "numpy", "tokenizers", "safetensors", "sentencepiece", "huggingface_hub", "av", "tqdm")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    raise SystemExit(f"missing here, bring their wheels: {', '.join(missing)}")
for name, what in (("transformers", "peers of the models"), ("matplotlib", "plots"), ("pytest", "tests")):
    if importlib.util.find_spec(name) is None:
        print(f"{name} is missing: no {what}")
END
"$python" -m fastspeech doctor
