"""bench/sanitize.sh, rehearsed with a compute-sanitizer that only runs its command, and Triton's interpreter."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "bench" / "sanitize.sh"
ONLY_RUNS = """#!/bin/bash
echo "$@" >>"$CALLS"
[[ $1$2 == "$FINDS" ]] && exit 1
while [[ $1 == --* ]]; do
    shift
    [[ $1 =~ ^[a-z0-9]+$ ]] && shift
done
exec "$@"
"""


def sanitize(folder: Path, **more: str) -> tuple[int, str]:
    env = {**os.environ, "PYTHON": sys.executable, "DEVICE": "cpu", "TRITON_INTERPRET": "1", **more}
    done = subprocess.run(["bash", SCRIPT, folder, "cmvn"], env=env, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_what_was_found_is_told_and_what_was_done_is_kept(tmp_path: Path) -> None:
    tool, calls, logs = tmp_path / "bin" / "compute-sanitizer", tmp_path / "calls", tmp_path / "logs"
    tool.parent.mkdir()
    tool.write_text(ONLY_RUNS)
    tool.chmod(0o755)
    path = {"PATH": f"{tool.parent}:{os.environ['PATH']}", "CALLS": str(calls)}
    status, said = sanitize(logs, **path, LIMIT_S="0")
    assert status == 3 and said.split().count("left") == 2
    status, said = sanitize(logs, **path, FINDS="--toolracecheck")
    assert status == 1 and [line.split()[-1] for line in said.splitlines()] == ["ok", "FAIL"]
    log = (logs / "cmvn-triton-memcheck.log").read_text()
    assert log.count("ok ") == log.count("\n") - 1 > 5
    (logs / "cmvn-triton-racecheck.log").unlink()
    status, said = sanitize(logs, **path)
    assert status == 0 and said.split().count("ok") == 2
    made = [line.split()[1] for line in calls.read_text().splitlines() if line.startswith("--tool")]
    assert made.count("memcheck") == 1 and made.count("racecheck") == 2


def test_without_a_tool_that_works_nothing_passes(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "mkdir", "dirname", "tail"):
        (tools / name).symlink_to(shutil.which(name) or name)
    status, said = sanitize(tmp_path, PATH=str(tools))
    assert status == 2 and said == "compute-sanitizer is not on PATH: no kernel was checked\n"
    tool = tools / "compute-sanitizer"
    tool.write_text("#!/bin/bash\necho not permitted >&2\nexit 1\n")
    tool.chmod(0o755)
    status, said = sanitize(tmp_path, PATH=str(tools))
    assert status == 2 and said == "compute-sanitizer does not work here, no kernel was checked: not permitted\n"
