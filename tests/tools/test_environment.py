"""When the environment is made, changed or left alone, as a stand-in for Python sees it."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Makes an environment whose interpreter is itself, and notes what was asked of it.
PYTHON = """#!/bin/bash
case "$*" in
    "-m venv "*) echo venv >>"$CALLS"; mkdir -p "$3/bin"; cp "$0" "$3/bin/python" ;;
    "-m pip "*) echo "pip $*" >>"$CALLS"; echo "pip's last words"; exit "${PIP_STATUS:-0}" ;;
    "--version") echo Python 3.12.0 ;;
    "-c "*) exit "${UNSUPPORTED:-0}" ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A checkout in a path with a space, and PATH with the stand-in alone before the system's."""
    checkout = tmp_path / "a checkout"
    (checkout / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "environment", checkout / "tools")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, checkout)
    (tmp_path / "bin").mkdir()
    for name in ("python3.12", "python3.11", "python3"):
        (tmp_path / "bin" / name).write_text(PYTHON)
        (tmp_path / "bin" / name).chmod(0o755)
    return checkout


@pytest.fixture
def ensure(checkout, tmp_path):
    """Function that ensures the environment from another folder: its result, and the calls made."""
    calls = tmp_path / "calls"
    script = checkout / "tools" / "program"
    script.write_text(
        "set -euo pipefail\n"
        'source "$(dirname "${BASH_SOURCE[0]}")/environment"\n'
        'ensure_environment "$@"\n'
        'echo "in $PWD with $python"\n'
    )

    def call(
        *extras: str, **environment: str
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        calls.write_text("")
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        result = subprocess.run(
            ["bash", str(script), *extras],
            capture_output=True,
            text=True,
            cwd="/",
            env={**os.environ, "PATH": path, "CALLS": str(calls), **environment},
            check=False,
        )
        return result, [line.split()[0] for line in calls.read_text().splitlines()]

    return call


def test_it_is_made_once(ensure, checkout):
    result, calls = ensure()
    assert result.returncode == 0, result.stderr
    assert calls == ["venv", "pip"]
    assert result.stdout.endswith(f"in {checkout} with {checkout}/.venv/bin/python\n")
    result, calls = ensure()
    assert (result.returncode, calls) == (0, [])
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_changed_dependencies_are_installed(ensure, checkout, name):
    ensure()
    with (checkout / name).open("a") as file:
        file.write("# changed\n")
    assert ensure()[1] == ["pip"]
    assert ensure()[1] == []


def test_an_extra_is_installed_for_those_who_need_it(ensure, checkout):
    assert "installing dependencies (" in ensure()[0].stdout
    assert ensure("harness")[1] == ["pip"]
    assert ensure("harness")[1] == ensure()[1] == []
    # What is there is not installed again beside what is missing.
    assert "installing dependencies [test] (" in ensure("harness", "test")[0].stdout
    with (checkout / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert ensure()[1] == ["pip"]
    result, calls = ensure("test", "harness")
    assert calls == ["pip"] and "[test,harness]" in result.stdout
    # A fresh environment, at once with the extra.
    shutil.rmtree(checkout / ".venv")
    assert ensure("harness")[1] == ["venv", "pip"]


def test_an_interrupted_install_is_made_anew(ensure, checkout):
    ensure()
    (checkout / "constraints.txt").write_text("")
    result, calls = ensure(PIP_STATUS="1")
    assert (result.returncode, calls) == (2, ["pip"])
    assert "pip's last words" in result.stderr
    assert result.stderr.endswith(
        "program: error: pip could not install the dependencies; its last words are above\n"
    )
    (checkout / ".venv" / "half").touch()
    assert ensure()[1] == ["venv", "pip"]
    assert not (checkout / ".venv" / "half").exists()


def test_a_moved_checkout_is_installed_again(checkout, tmp_path, ensure):
    ensure()
    # An editable install names the folder, so it is stale wherever else the folder goes.
    checkout.rename(tmp_path / "moved")
    program = tmp_path / "moved" / "tools" / "program"
    command = ["bash", str(program)]
    environment = {**os.environ, "CALLS": str(tmp_path / "calls")}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert "installing dependencies" in result.stdout


@pytest.mark.skipif(shutil.which("flock") is None, reason="no flock on this system")
def test_two_at_once_install_once(ensure):
    with ThreadPoolExecutor() as pool:
        results = [running.result() for running in [pool.submit(ensure) for _ in range(2)]]
    assert [result.returncode for result, _ in results] == [0, 0]
    assert "".join(result.stdout for result, _ in results).count("environment is ready") == 1


def test_no_python_is_one_sentence(ensure, checkout):
    result, calls = ensure(UNSUPPORTED="1")
    assert (result.returncode, calls) == (2, [])
    assert result.stderr.startswith("program: error: no Python 3.11 or 3.12 on PATH; ")
    assert result.stderr.count("\n") == 1
    assert not (checkout / ".venv").exists()


def test_an_environment_of_somebody_else_is_not_removed(ensure, checkout):
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "keep").touch()
    result, calls = ensure()
    assert (result.returncode, calls) == (2, [])
    assert "move it away" in result.stderr
    assert (checkout / ".venv" / "keep").exists()
