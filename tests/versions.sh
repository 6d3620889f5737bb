#!/bin/sh
# Runs the tests of the integrations under other versions of transformers than the environment's, each in an
# environment of its own: tests/versions.sh [VERSION...]. Keeps them in ${VERSIONS_DIR:-build/versions}.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 4.56.2 5.6.2 5.23.0
for version in "$@"; do
    home="${VERSIONS_DIR:-build/versions}/$version"
    if [ ! -x "$home/bin/pytest" ]; then
        "${PYTHON:-python3}" -m venv "$home"
        "$home/bin/pip" install -q -e . torch==2.13.0 "transformers==$version" pytest hypothesis
    fi
    echo "transformers $version"
    "$home/bin/python" -m pytest tests/integrations -q
done
