"""The quick start's commands, with a Python that does nothing but look at where they write."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENT = """
say() { :; }
ensure_environment() { :; }
python=tools/look
"""
LOOK = """#!/usr/bin/env bash
set -euo pipefail
[ "$2" != lm.train ] || mkdir -p runs/quickstart
[ "$2" != lm.generate ] || [ "${OMP_NUM_THREADS:-}" = 1 ] || { echo "threads wait"; exit 2; }
[ "$2" = lm.generate ] || [ -z "${OMP_NUM_THREADS:-}" ] || { echo "threads are given"; exit 2; }
while [ "$#" -gt 0 ]; do
    if [ "$1" = --out ] || [ "$1" = --json ]; then
        [ -d "$(dirname "$2")" ] || { echo "no folder for $2"; exit 2; }
    fi
    shift
done
"""


def test_every_result_has_its_folder(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "environment").write_text(ENVIRONMENT)
    (tools / "look").write_text(LOOK)
    (tools / "look").chmod(0o755)
    (tools / "quickstart").write_text((ROOT / "tools" / "quickstart").read_text())
    command = ["env", "-u", "OMP_NUM_THREADS", "bash", "tools/quickstart"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
