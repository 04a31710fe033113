"""Checkpoints beside the training: complete or absent, cleared out, surviving a full disk."""

import contextlib
import errno
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.shards import Shards
from lm.runs import checkpoints
from lm.runs.run_config import RunConfig
from lm.runs.runlog import read_metrics
from lm.scoring import Score
from lm.training import dist, writer
from lm.training.loop import Loop
from lm.training.trainer import Trainer
from tests.runs import with_training


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def folders(*steps: int) -> list[str]:
    return ["latest", *(f"step-{step:08d}" for step in steps)]


def test_the_newest_and_every_nth_checkpoint_are_kept(
    run_config: RunConfig, shards: Shards, world: dist.World, tmp_path: Path
) -> None:
    config = with_training(run_config, save_every=1, keep=2, keep_every=5, validate_every=12)
    assert Loop(Trainer(config, shards, world), tmp_path).train()
    assert names(tmp_path) == folders(5, 10, 11, 12)
    (tmp_path / "checkpoints" / ".step-00000013.partial").mkdir()
    newest = checkpoints.newest(tmp_path)
    assert newest is not None and newest.name == "step-00000012"
    with pytest.raises(ValueError, match="step-00000011, step-00000012"):
        checkpoints.find(tmp_path, "step-00000001")


def test_the_best_checkpoint_is_kept(
    run_config: RunConfig, shards: Shards, world: dist.World, tmp_path: Path
) -> None:
    config = with_training(run_config, save_every=2, validate_every=2, keep=1, keep_best=True)
    loop = Loop(Trainer(config, shards, world), tmp_path)
    nats = iter([5.0, 4.0, 6.0, 7.0, 8.0, 9.0])
    loop.observer.validate = lambda: Score(next(nats), 1, 1, np.zeros(1))  # type: ignore[method-assign]
    loop.train()
    assert names(tmp_path) == folders(4, 12)


def test_a_full_disk_leaves_the_run_alive_and_the_checkpoint_before_good(
    run_config: RunConfig,
    shards: Shards,
    world: dist.World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The second checkpoint finds no room; the others do."""
    calls = []

    def save_tensors(tensors: dict[str, Any], path: Path) -> None:
        calls.append(path)
        if "step-00000006" in str(path):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(tensors, path)

    original = writer.save_tensors
    monkeypatch.setattr(writer, "save_tensors", save_tensors)
    config = with_training(run_config, save_every=3, keep=9, validate_every=12)
    assert Loop(Trainer(config, shards, world), tmp_path).train()
    assert names(tmp_path) == folders(3, 9, 12)
    assert "step 6 was not written" in capfd.readouterr().err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield place
    # Lazily: files that were read stay mapped into memory for a while.
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_is_really_full_costs_one_checkpoint(
    run_config: RunConfig,
    shards: Shards,
    world: dist.World,
    small_disk: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """From step 4 to step 7 no byte is free, for the log neither."""
    config = with_training(run_config, save_every=3, keep=9, validate_every=12)
    loop = Loop(Trainer(config, shards, world), small_disk)
    step, ballast = loop.trainer.train_step, small_disk / "ballast"

    def step_on_a_full_disk(*arguments: Any) -> dict[str, float]:
        if loop.trainer.step == 4:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while file.write(b"x" * 512):
                    pass
        if loop.trainer.step == 7:
            ballast.unlink()
        return step(*arguments)

    loop.trainer.train_step = step_on_a_full_disk  # type: ignore[method-assign]
    assert loop.train()
    assert names(small_disk) == folders(3, 9, 12)
    said = capfd.readouterr().err
    assert "step 6 was not written" in said and "No space left on device" in said
    logged = [r["step"] for r in read_metrics(small_disk / "metrics.jsonl") if "loss" in r]
    assert logged == list(range(1, 13))
    for name in ("step-00000003", "step-00000012"):
        Trainer(config, shards, world, small_disk / "checkpoints" / name)


def test_a_last_checkpoint_that_cannot_be_written_fails_the_run(
    run_config: RunConfig,
    shards: Shards,
    world: dist.World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def save_tensors(tensors: dict[str, Any], path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "save_tensors", save_tensors)
    with pytest.raises(ValueError, match="step 12 could not be written; make room"):
        Loop(Trainer(run_config, shards, world), tmp_path).train()


def test_a_log_that_finds_no_room_goes_on_later(tmp_path: Path) -> None:
    """A file size limit stands for a full disk: half a line is cut back and written again."""
    from lm.runs.runlog import MetricsLog

    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1})
    log.path.chmod(0o400)
    log.path.rename(tmp_path / "away")
    log.path.mkdir()
    log.write({"step": 2})
    log.path.rmdir()
    (tmp_path / "away").rename(log.path)
    log.path.chmod(0o600)
    log.write({"step": 3})
    assert [record["step"] for record in read_metrics(log.path)] == [1, 2, 3]


def test_a_signal_saves_and_ends_the_run_between_two_steps(
    run_config: RunConfig, shards: Shards, world: dist.World, tmp_path: Path
) -> None:
    loop = Loop(Trainer(run_config, shards, world), tmp_path)
    step = loop.trainer.train_step

    def step_and_signal(*arguments: Any) -> dict[str, float]:
        if loop.trainer.step == 6:
            loop.stop.signal = 15
        return step(*arguments)

    loop.trainer.train_step = step_and_signal  # type: ignore[method-assign]
    assert not loop.train()
    assert names(tmp_path) == folders(5, 7)


def test_half_a_line_of_a_killed_process_is_no_record(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(log) == [{"step": 1}]
    log.write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1: is not JSON"):
        read_metrics(log)
