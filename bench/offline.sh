#!/usr/bin/env bash
# Installs the checkout on a machine without network, into a Python that already has torch, triton and transformers:
#
#     bench/offline.sh WHEELS [PYTHON]
#
# WHEELS is a folder with wheels of what is missing there, made where there is a network by, for example,
#     pip download --no-deps --only-binary=:all: --python-version 3.12 -d WHEELS setuptools av pytest-benchmark py-cpuinfo
# The extension is compiled against the torch that is there where nvcc is on PATH. Then:
#     python -m pytest -m gpu
#     python -m bench gpu --resume --part 1      (and 2, and 3: each within ten minutes)
set -euo pipefail
cd "$(dirname "$0")/.."
wheels=$1
python=${2:-python3}

if compgen -G "$wheels/*.whl" >/dev/null; then
    "$python" -m pip install -q --no-index --no-deps "$wheels"/*.whl
fi
"$python" -m pip install -q --no-index --no-deps --no-build-isolation -e .
"$python" -m fastspeech doctor
