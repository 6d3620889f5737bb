#!/bin/sh
# Runs the tests of the integrations under other versions of transformers than constraints.txt's, each in an environment
# of its own: tests/versions.sh [VERSION...]. What is installed once stays in ${VERSIONS_DIR:-build/versions}; all else
# is as constraints.txt has it, but for what these versions of transformers bound themselves.
set -eu
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- 4.56.2 5.6.2 5.23.0
folder="${VERSIONS_DIR:-build/versions}"
mkdir -p "$folder"
grep -vE '^(transformers|tokenizers|huggingface_hub)==' constraints.txt > "$folder/constraints.txt"
failed=
for version in "$@"; do
    echo "== transformers $version"
    home="$folder/$version"
    pip="$home/bin/python -m pip -q --disable-pip-version-check"
    if [ ! -e "$home/installed" ]; then
        "${PYTHON:-python3}" -m venv --clear "$home"
        $pip install -c "$folder/constraints.txt" torch "setuptools>=77" "transformers==$version" pytest hypothesis
        # The versions of the kernels package that this one of transformers takes, or any where the index has none.
        extra=kernels
        case $version in 4.*) extra=hub-kernels ;; esac
        $pip install -c "$folder/constraints.txt" "transformers[$extra]==$version" ||
            $pip install -c "$folder/constraints.txt" kernels
        $pip install -c "$folder/constraints.txt" --no-build-isolation -e .
        touch "$home/installed"
    fi
    # The extension is built from the sources as they are now.
    $pip install --no-build-isolation --no-deps -e .
    "$home/bin/python" -m pytest tests/integrations -q || failed="$failed $version"
done
[ -z "$failed" ] || { echo "failed under transformers$failed"; exit 1; }
