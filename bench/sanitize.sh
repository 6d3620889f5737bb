#!/usr/bin/env bash
# Every CUDA kernel under compute-sanitizer: memcheck (accesses beyond an allocation, or misaligned) and racecheck
# (hazards in shared memory), on the odd cases of the ops' records, in all dtypes and layouts, backward included.
#
#     bench/sanitize.sh FOLDER [OP ...]
#
# FOLDER gets a log of each op, implementation and tool. A call ends within ten minutes (LIMIT_S); the same command
# then does what it has left. Exit status: 0 nothing found, 1 something found, 2 the tool does not work here, 3 there is
# more to do. DEVICE=cpu TRITON_INTERPRET=1 rehearses it, with a compute-sanitizer on PATH that only runs its command.
set -uo pipefail
mkdir -p "$1"
folder=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
limit=${LIMIT_S:-540}
# An allocation of its own for each tensor: within one of PyTorch's blocks, a neighbour's memory is no error.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1

if ! command -v compute-sanitizer >/dev/null; then
    echo "compute-sanitizer is not on PATH: no kernel was checked"
    exit 2
fi
probe="import torch; print(torch.ones(2, device='$device').sum().item())"
if ! said=$(compute-sanitizer --error-exitcode 1 "$python" -c "$probe" 2>&1); then
    echo "compute-sanitizer does not work here, no kernel was checked: $(tail -n 1 <<<"$said")"
    exit 2
fi

check() {
    local log=$1 tool=$2 op=$3 backend=$4
    timeout $((limit > SECONDS ? limit - SECONDS : 1)) compute-sanitizer --tool "$tool" --error-exitcode 1 \
        "$python" -m fastspeech.kernels.verify --device "$device" --op "$op" --backend "$backend" --kind odd \
        --check parity layouts gradients gradient_layouts >"$log" 2>&1
    echo "exit $?" >>"$log"
}

pairs=$("$python" - "$@" <<'END'
import sys

from fastspeech.kernels import OPS

for name in sys.argv[1:] or OPS:
    for implementation in OPS[name].implementations:
        if implementation.on_cuda:
            print(name, implementation.name)
END
) || exit 2
for tool in memcheck racecheck; do
    while read -r op backend; do
        log="$folder/$op-$backend-$tool.log"
        [[ -f $log && $(tail -n 1 "$log") =~ ^exit\ [01]$ ]] && continue
        while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n; done
        ((SECONDS < limit)) && check "$log" "$tool" "$op" "$backend" &
    done <<<"$pairs"
done
wait

status=0
for tool in memcheck racecheck; do
    while read -r op backend; do
        log="$folder/$op-$backend-$tool.log"
        verdict=$(tail -n 1 "$log" 2>/dev/null)
        # A run without a check has shown nothing.
        if [[ $verdict == "exit 0" ]] && grep -q "^ok " "$log"; then
            verdict=ok
        elif [[ $verdict =~ ^exit\ [0-9]+$ && $verdict != "exit 124" ]]; then
            verdict=FAIL status=1
        else
            verdict=left status=$((status ? status : 3))
        fi
        printf '%-9s %-24s %-7s %s\n' "$tool" "$op" "$backend" "$verdict"
    done <<<"$pairs"
done >"$folder/summary.txt"
cat "$folder/summary.txt"
exit "$status"
