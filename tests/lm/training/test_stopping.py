"""Signals stop a run wherever it is, and it goes on as if there had been none."""

import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.common.signals import ENDING
from lm.runs import checkpoints
from lm.runs.run_config import ReportConfig, RunConfig
from lm.scoring import Scorer
from lm.training import observer, writer
from lm.training.stopping import STATUS, STOPPED, launchers, stopped_status
from lm.training.trainer import Trainer
from tests import processes
from tests.processes import assert_same_end, ends, records, start, wait_for, write_config
from tests.runs import train_here

POINTS: dict[str, tuple[Any, str, int]] = {
    "a step": (Trainer, "train_step", 4),
    "validation": (Scorer, "advance", 3),
    "the last validation": (Scorer, "advance", 7),
    "a sample": (observer, "Sampler", 1),
    "writing a checkpoint": (writer, "publish_folder", 1),
}
"""What is going on when a signal comes, and at which call of it."""


@pytest.fixture
def config(run_config: RunConfig) -> RunConfig:
    return replace(run_config, report=ReportConfig(sample_every=6, sample_tokens=12))


@pytest.fixture(scope="module")
def whole(run_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody stops."""
    run = tmp_path_factory.mktemp("whole")
    config = replace(run_config, report=ReportConfig(sample_every=6, sample_tokens=12))
    assert train_here(config, run) == 0
    return run


def send_at(point: str, numbers: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process get signals when it comes to a point."""
    owner, name, at = POINTS[point]
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def watched(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            for number in numbers:
                os.kill(os.getpid(), number)
            time.sleep(0.1)
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, watched)


@pytest.mark.parametrize("point", POINTS)
def test_a_signal_at_any_point_is_heeded_there_and_the_run_goes_on_exactly(
    point: str,
    config: RunConfig,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A validation and a sample that were left are made when the run goes on."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        send_at(point, [signal.SIGTERM], patch)
        assert train_here(config, run) == STOPPED
    said = re.findall(
        r"stopped by SIGTERM at step (\d+), saved; the same command goes on", capfd.readouterr().err
    )
    reached = int(said[0])
    expected = {"a step": 4, "validation": 6, "the last validation": 12, "a sample": 6}
    assert len(said) == 1 and reached == expected.get(point, reached)
    folder = checkpoints.newest(run)
    assert folder is not None and folder.name == f"step-{reached:08}"
    assert records(run)[-1]["step"] == reached
    assert train_here(config, run) == 0
    assert_same_end(whole, run)
    for path in (whole / "samples").iterdir():
        assert path.read_bytes() == (run / "samples" / path.name).read_bytes()
    # What was owed is paid; a finished run has nothing to do.
    assert train_here(config, run) == 0
    assert records(run) == records(whole)


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_every_signal_that_people_and_schedulers_send_saves(
    number: signal.Signals,
    run_config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Schedulers may send one again and again; only Ctrl-C twice means something else."""
    times = 1 if number == signal.SIGINT else 3
    send_at("a step", [number] * times, monkeypatch)
    assert train_here(run_config, tmp_path / "run") == STOPPED
    assert f"stopped by {number.name} at step 4, saved" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_was_ignored_from_the_start_stays_so(
    run_config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`nohup python -m lm.train ...` outlives the terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        send_at("a step", [signal.SIGHUP], monkeypatch)
        assert train_here(run_config, tmp_path / "run") == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_rank_of_torchrun_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchrun calls every status but 0 a failure; a launcher of ours passes it on."""
    assert stopped_status() == STOPPED
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert stopped_status() == 0
    monkeypatch.setenv(STATUS, "1")
    assert stopped_status() == STOPPED
    monkeypatch.delenv("RANK", raising=False)
    assert launchers() == []


@pytest.mark.slow
@pytest.mark.dist
def test_a_signal_to_one_of_two_ranks_stops_both_at_the_same_step(
    run_config: RunConfig, tmp_path: Path
) -> None:
    training = replace(run_config.training, steps=60, save_every=60, validate_every=30)
    path = write_config(replace(run_config, training=training), tmp_path)
    whole, run = tmp_path / "whole", tmp_path / "run"
    ranks = start(processes.train(path, run), 2)
    wait_for(10, run, ranks[0])
    ranks[1].send_signal(signal.SIGUSR1)
    (first, said), (second, _) = ends(ranks)
    assert (first, second) == (STOPPED, STOPPED)
    assert said.count("stopped by a signal at step") == 1
    for folder in (run, whole):
        assert [status for status, _ in ends(start(processes.train(path, folder), 2))] == [0, 0]
    assert_same_end(whole, run)


@pytest.mark.slow
@pytest.mark.dist
def test_a_rank_that_waits_for_another_ends_when_it_is_told_to(
    run_config: RunConfig, tmp_path: Path
) -> None:
    """Before the ranks have met, and while one waits in a collective that Python does not see."""
    training = replace(run_config.training, steps=3000, save_every=3000, validate_every=3000)
    path = write_config(replace(run_config, training=training), tmp_path)
    first, second = start(processes.train(path, tmp_path / "run"), 2)
    wait_for(10, tmp_path / "run", first)
    second.send_signal(signal.SIGSTOP)
    time.sleep(1)
    first.send_signal(signal.SIGINT)
    time.sleep(1)
    assert first.poll() is None
    first.send_signal(signal.SIGINT)
    (status, said), *_ = ends([first])
    assert status == 128 + signal.SIGINT and "train: ended at once" in said
    second.kill()
    ends([second])
    alone, other = start(processes.train(path, tmp_path / "other"), 2)
    other.kill()
    time.sleep(10)
    alone.send_signal(signal.SIGTERM)
    since = time.monotonic()
    (status, said), *_ = ends([alone])
    assert status in (STOPPED, 128 + signal.SIGTERM) and time.monotonic() - since < 5
    assert len(said.strip().splitlines()) <= 2 and "Traceback" not in said, said
    assert not (tmp_path / "other").exists()
    ends([other])
