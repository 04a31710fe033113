"""Training runs as processes: how they are started, waited for, killed and compared."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.common.command import dump_config
from lm.runs import checkpoints
from lm.runs.run_config import RunConfig
from lm.runs.runlog import read_metrics
from lm.training import dist

TIMES = ("tokens_per_second", "mfu", "seconds", "memory_bytes")


def write_config(config: RunConfig, folder: Path) -> Path:
    path = folder / "preset.yaml"
    path.write_text(dump_config(config))
    return path


def train(config: Path, run: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "lm.train", "--config", str(config), "--run", str(run)]
    return command + list(options)


def finish(command: list[str]) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result


def records(run: Path) -> list[dict[str, float]]:
    """What metrics.jsonl says, less what depends on the clock."""
    lines = read_metrics(run / "metrics.jsonl")
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


def start(command: list[str], ranks: int) -> list[subprocess.Popen[str]]:
    """Start a run as a launcher would, with nobody who looks after the ranks."""
    port = str(dist.free_port())
    world = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]


def wait_for(step: int, run: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a run has logged a step, or has ended."""
    log = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        if process.poll() is not None:
            return
        assert time.monotonic() < deadline
        time.sleep(0.002)


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit status and messages of every rank, which must not hang."""
    messages = [process.communicate(timeout=120)[1] for process in processes]
    return [(p.returncode, text) for p, text in zip(processes, messages, strict=True)]


def kill_after(step: int, delay: float, command: list[str], run: Path, ranks: int) -> None:
    """Start a run and SIGKILL its last rank some time after a step has been logged."""
    processes = start(command, ranks)
    wait_for(step, run, processes[0])
    time.sleep(delay)
    processes[-1].kill()
    *others, (status, _) = ends(processes)
    assert status == -signal.SIGKILL
    for status, message in others:
        assert status == 1 and "lost contact with another rank" in message


def assert_same_end(a: Path, b: Path) -> None:
    """Same records, weights, optimiser, memory and random state, bit for bit."""
    assert records(a) == records(b)
    one, other = (checkpoints.newest(run) for run in (a, b))
    assert one is not None and other is not None and one.name == other.name
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}
    for path in one.glob("*.safetensors"):
        mine, theirs = load_file(path), load_file(other / path.name)
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert torch.equal(tensor, theirs[key]), key


def assert_close_records(
    mine: list[dict[str, float]], theirs: list[dict[str, float]], rel: float = 1e-3
) -> None:
    """The same values in every record, to rounding."""
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert one == pytest.approx(other, rel=rel)
