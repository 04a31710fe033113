"""The throwaway program, as a process and in this one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.toy import toy as toy_main

ROOT = Path(__file__).parents[3]
TOY = [sys.executable, str(ROOT / "tests" / "data" / "toy.py")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def toy_process(tmp_path):
    """The program as a process of its own."""

    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*TOY, *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=ENVIRONMENT | environment,
            check=False,
        )

    return call


@pytest.fixture
def toy(tmp_path, monkeypatch, capsys):
    """The program in this process, which is quicker."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/somewhere/toy.py"])

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        status = 0
        try:
            toy_main([*arguments])
        except SystemExit as stop:
            status = stop.code
        return subprocess.CompletedProcess(arguments, status, *capsys.readouterr())

    return call
