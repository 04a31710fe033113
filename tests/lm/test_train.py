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
from lm.training import dist
from lm.training.checkpoint import read_state
from lm.training.config import RunConfig
from lm.training.runlog import read_metrics
from lm.training.stopping import STOPPED

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
    name = (a / "checkpoints" / "latest").read_text().strip()
    assert name == (b / "checkpoints" / "latest").read_text().strip()
    for path in (a / "checkpoints" / name).glob("*.safetensors"):
        mine, theirs = load_file(path), load_file(b / "checkpoints" / name / path.name)
        assert mine.keys() == theirs.keys()
        for key, tensor in mine.items():
            assert torch.equal(tensor, theirs[key]), key


@pytest.fixture(scope="module")
def long_config(run_config: RunConfig) -> RunConfig:
    """Long enough that a kill lands before the end."""
    training = replace(run_config.training, steps=150, save_every=1, validate_every=50)
    return replace(run_config, training=training)


def run_whole_and_killed(config: RunConfig, folder: Path, kills: int, ranks: int = 1) -> None:
    """Kill a run at random moments: in a step, while saving, between two files of a checkpoint."""
    rng = random.Random(kills)
    path = write_config(config, folder)
    steps = config.training.steps
    assert steps is not None
    assert all(status == 0 for status, _ in ends(start(train(path, folder / "whole"), ranks)))
    killed = train(path, folder / "killed")
    for number in range(kills):
        # Every step saves, so each start moves on.
        step = 5 + number * (steps - 20) // kills
        kill_after(step, rng.random() * 0.03, killed, folder / "killed", ranks)
    finished = ends(start(killed, ranks))
    assert all(status == 0 for status, _ in finished)
    assert "continue" in finished[0][1]
    assert_same_end(folder / "whole", folder / "killed")


def test_a_killed_run_resumes_bit_for_bit(long_config: RunConfig, tmp_path: Path) -> None:
    run_whole_and_killed(long_config, tmp_path, kills=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_fifty_times_resumes_bit_for_bit(
    long_config: RunConfig, tmp_path: Path
) -> None:
    training = replace(long_config.training, steps=400)
    run_whole_and_killed(replace(long_config, training=training), tmp_path, kills=50)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_one_rank_of_two_is_killed_and_the_run_resumes_bit_for_bit(
    long_config: RunConfig, tmp_path: Path, zero: int
) -> None:
    training = replace(long_config.training, zero=zero, steps=60)  # type: ignore[arg-type]
    run_whole_and_killed(replace(long_config, training=training), tmp_path, kills=4, ranks=2)


@pytest.mark.dist
def test_signals_deaths_and_other_numbers_of_ranks_lose_nothing(
    run_config: RunConfig, tmp_path: Path
) -> None:
    """Two ranks under ZeRO 2, stopped; one rank, killed; two ranks, of which one dies; two ranks.

    Losses are those of one rank to rounding, and every lane stands at the same token.
    """
    model = replace(run_config.model, dropout=0.0)
    training = replace(run_config.training, steps=60, save_every=2, validate_every=50, zero=2)
    path = write_config(replace(run_config, model=model, training=training), tmp_path)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert ends(start(train(path, whole), 1))[0][0] == 0
    command = train(path, run)
    stopped = start(command, 2)
    wait_for(5, run, stopped[0])
    stopped[1].send_signal(signal.SIGUSR1)
    assert [status for status, _ in ends(stopped)] == [STOPPED] * 2
    kill_after(20, 0.0, command, run, ranks=1)
    kill_after(30, 0.0, command, run, ranks=2)
    assert [status for status, _ in ends(start(command, 2))] == [0, 0]
    assert_close_records(records(whole), records(run))
    states = [read_state(folder / "checkpoints" / "step-00000060") for folder in (whole, run)]
    assert states[0]["lanes"] == states[1]["lanes"]
    assert (states[0]["ranks"], states[1]["ranks"]) == (1, 2)


def assert_close_records(mine: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    """The same values in every record, to rounding."""
    assert len(mine) == len(theirs)
    for one, other in zip(mine, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.dist
@pytest.mark.parametrize(
    "launcher", ["torchrun", pytest.param("deepspeed", marks=pytest.mark.slow)]
)
def test_two_ranks_train_as_one(
    run_config: RunConfig, tmp_path: Path, launcher: str, free_port: int
) -> None:
    """Same losses to rounding, same log, and one rank can take the run over."""
    config = replace(run_config, model=replace(run_config.model, dropout=0.0))
    path = write_config(config, tmp_path)
    finish(train(path, tmp_path / "one"))
    scripts = Path(sys.executable).parent
    if launcher == "torchrun":
        begin = [str(scripts / "torchrun"), "--nproc_per_node=2", f"--master_port={free_port}"]
        # Without "--" torchrun takes --run for a part of its own --run-path.
        begin += ["-m", "--", "lm.train"]
    else:
        begin = [str(scripts / "deepspeed"), "--num_accelerators=2", f"--master_port={free_port}"]
        begin += ["--module", "lm.train"]
    two = [*begin, *train(path, tmp_path / "two")[3:]]
    environment = os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}"}
    result = subprocess.run(two, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_close_records(records(tmp_path / "one"), records(tmp_path / "two"))
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
