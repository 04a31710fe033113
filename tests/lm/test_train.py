"""The training program as users start it: alone, killed, on two ranks, with mistakes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.command import dump_config
from lm.training.config import RunConfig
from lm.training.runlog import read_metrics

TIMES = ("tokens_per_second", "mfu", "seconds")


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


def kill_after(command: list[str], run: Path, step: int, delay: float) -> None:
    """Start a run and SIGKILL it some time after it has logged a step."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    log = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and f'"step": {step},' in log.read_text()):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def assert_same_end(a: Path, b: Path) -> None:
    """Same records, weights, memory and random state, bit for bit."""
    assert records(a) == records(b)
    name = (a / "checkpoints" / "latest").read_text().strip()
    assert name == (b / "checkpoints" / "latest").read_text().strip()
    for file in ("model.safetensors", "rank-0.safetensors"):
        mine, theirs = (load_file(run / "checkpoints" / name / file) for run in (a, b))
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert torch.equal(tensor, theirs[key]), key


@pytest.fixture(scope="module")
def long_config(run_config: RunConfig) -> RunConfig:
    """Long enough that a kill lands before the end."""
    training = replace(run_config.training, steps=600, save_every=7, validate_every=50)
    return replace(run_config, training=training)


def run_whole_and_killed(config: RunConfig, folder: Path, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    path = write_config(config, folder)
    finish(train(path, folder / "whole"))
    step = 1
    for _ in range(kills):
        step += rng.randint(1, 500 // kills)
        kill_after(train(path, folder / "killed"), folder / "killed", step, rng.random() * 0.02)
    result = finish(train(path, folder / "killed"))
    assert "continue" in result.stderr
    assert_same_end(folder / "whole", folder / "killed")


def test_a_killed_run_resumes_bit_for_bit(long_config: RunConfig, tmp_path: Path) -> None:
    run_whole_and_killed(long_config, tmp_path, kills=1, seed=0)


@pytest.mark.slow
def test_a_run_killed_many_times_resumes_bit_for_bit(
    long_config: RunConfig, tmp_path: Path
) -> None:
    run_whole_and_killed(long_config, tmp_path, kills=8, seed=1)


@pytest.mark.dist
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_ranks_train_as_one(
    run_config: RunConfig, tmp_path: Path, launcher: str, free_port: int
) -> None:
    """Same losses to rounding, same log, and one rank can take the run over."""
    config = replace(run_config, model=replace(run_config.model, dropout=0.0))
    path = write_config(config, tmp_path)
    finish(train(path, tmp_path / "one"))
    scripts = Path(sys.executable).parent
    if launcher == "torchrun":
        start = [str(scripts / "torchrun"), "--nproc_per_node=2", f"--master_port={free_port}"]
        # Without "--" torchrun takes --run for a part of its own --run-path.
        start += ["-m", "--", "lm.train"]
    else:
        start = [str(scripts / "deepspeed"), "--num_accelerators=2", f"--master_port={free_port}"]
        start += ["--module", "lm.train"]
    two = [*start, *train(path, tmp_path / "two")[3:]]
    environment = os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}"}
    result = subprocess.run(two, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    one_records, two_records = records(tmp_path / "one"), records(tmp_path / "two")
    assert len(one_records) == len(two_records)
    for mine, theirs in zip(one_records, two_records, strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert theirs[name] == pytest.approx(value, rel=2e-4), name
    final = tmp_path / "two" / "checkpoints" / "step-00000012"
    assert (final / "rank-1.safetensors").is_file()
    state = json.loads((final / "state.json").read_text())
    assert state["ranks"] == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--optim.lrr", "1"], "lr"),
        (["--model.layers", "0"], "model.layers must be at least 1"),
        (["--model.heads", "3"], "multiple of model.heads"),
        (["--data.shards", "nowhere"], "holds no shards"),
        (["--training.minutes", "1"], "either training.steps or training.minutes"),
        (["--config", "second.yaml"], "more than once"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_get_one_sentence_and_leave_nothing(
    run_config: RunConfig, tmp_path: Path, options: list[str], sentence: str
) -> None:
    path = write_config(run_config, tmp_path)
    command = train(path, tmp_path / "run", *options)
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert sentence in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_things_in_it_is_refused(run_config: RunConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("do not touch")
    result = subprocess.run(
        train(write_config(run_config, tmp_path), run), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2 and "thesis.txt" in result.stderr
    assert [p.name for p in run.iterdir()] == ["thesis.txt"]
