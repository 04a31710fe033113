"""Runs with minutes instead of steps: on time at any pace, and continued where they were."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.shards import Shards
from lm.runs import checkpoints
from lm.runs.checkpoints import CheckpointState
from lm.runs.run_config import RunConfig, TrainingConfig
from lm.runs.runlog import read_metrics
from lm.threads import Threads
from lm.training import dist, loop, stopping
from lm.training.loop import Loop
from lm.training.stopping import Length
from lm.training.trainer import Trainer

MINUTE = TrainingConfig(minutes=1.0)


def steps_at(seconds: list[float]) -> list[int]:
    """The number of steps as it is estimated while each step takes so many seconds."""
    run, spent, estimates = Length(MINUTE, None), 0.0, []
    for step, second in enumerate(seconds, start=1):
        spent += second
        run.fit(step, spent)
        estimates.append(run.steps)
        if step == run.steps:
            return estimates
    raise AssertionError("never ends")


def test_at_a_steady_pace_the_number_of_steps_is_known_from_the_first() -> None:
    assert set(steps_at([0.5] * 130)) == {120}


@pytest.mark.parametrize("first", [15.0, 35.0, 59.0])
def test_a_slow_first_step_does_not_end_a_run(first: float) -> None:
    """As of one that compiles: the time that is left is used, at the pace of the later steps."""
    estimates = steps_at([first] + [0.5] * 130)
    assert estimates[-1] == 1 + (60 - first) / 0.5
    # Known from the second on, so that the learning rate is of the right share of the run.
    assert set(estimates[1:]) == {estimates[-1]}
    assert steps_at([61.0, 0.5]) == [2, 2]


def test_a_slow_first_step_of_a_run_that_goes_on() -> None:
    run = Length(TrainingConfig(minutes=2.0), saved(step=60, steps=60, minutes=1.0, seconds=60.0))
    for step, seconds in ((61, 100.0), (62, 101.0), (63, 102.0)):
        run.fit(step, seconds)
        assert run.steps == 61 + 20


@pytest.mark.parametrize("later", [0.1, 2.0, 7.0], ids=["faster", "slower", "far slower"])
def test_a_run_ends_in_time_when_the_pace_changes(later: float) -> None:
    pace = [0.5] * 60 + [later] * 400
    last = steps_at(pace)[-1]
    assert abs(sum(pace[:last]) - 60) <= max(0.5, 2 * later)


def test_what_was_announced_as_the_last_step_is_the_last() -> None:
    run = Length(MINUTE, None)
    run.fit(9, 55.0)
    assert run.steps == 10
    run.fit(9, 70.0)
    assert run.steps == 10
    run.fit(10, 56.0)
    assert run.steps == 10


def test_a_number_of_steps_stays() -> None:
    run = Length(TrainingConfig(steps=7), None)
    run.fit(3, 1e9)
    assert (run.steps, run.known) == (7, 7)


def test_a_run_with_minutes_goes_on_for_the_time_that_was_left(
    run_config: RunConfig,
    shards: Shards,
    world: dist.World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a clock that ticks two seconds a step, stopped after a third of a minute."""
    training = replace(run_config.training, steps=None, minutes=1.0, validate_every=1000)
    config = replace(run_config, training=replace(training, log_every=1, save_every=1000))
    trainer = Trainer(config, shards, world)
    clock = [1000.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])

    def run(trainer: Trainer) -> Loop:
        loop, step = Loop(trainer, tmp_path), trainer.train_step

        def ticking(*arguments: int, **options: bool) -> dict[str, float]:
            clock[0] += 2.0
            if trainer.step == 9:
                loop.stop.signal = 15
            return step(*arguments, **options)

        monkeypatch.setattr(trainer, "train_step", ticking)
        return loop

    assert not run(trainer).train()
    assert trainer.step == 10
    clock[0] += 5000.0
    trainer = Trainer(config, shards, world, checkpoints.newest(tmp_path))
    assert run(trainer).train()
    assert trainer.step == 30
    clock[0] += 5000.0
    trainer = Trainer(config, shards, world, checkpoints.newest(tmp_path))
    assert run(trainer).train()
    assert trainer.step == 30
    records = read_metrics(tmp_path / "metrics.jsonl")
    rates = [record["lr"] for record in records if "lr" in record]
    assert len(rates) == 30 and rates[-1] < rates[15] / 20
    seconds = [record["seconds"] for record in records if "seconds" in record]
    assert seconds == sorted(seconds)


def saved(**fields: Any) -> CheckpointState:
    """What a checkpoint says of the length of its run."""
    return CheckpointState(ranks=1, shards="0", **fields)


def test_a_run_may_be_given_other_minutes_or_steps() -> None:
    half = saved(step=30, steps=60, minutes=1.0, seconds=30.0)
    assert Length(MINUTE, half).steps == 60
    assert Length(TrainingConfig(minutes=2.0), half).steps == 120
    assert Length(TrainingConfig(steps=40), half).steps == 40
    assert Length(MINUTE, saved(step=30, steps=30, minutes=None, seconds=30.0)).steps == 60
    finished = saved(step=60, steps=60, minutes=1.0, seconds=61.0)
    assert Length(MINUTE, finished).steps == 60
    assert Length(TrainingConfig(minutes=2.0), finished).steps == 118
    # Of a time when minutes could not change, and a checkpoint did not name them.
    assert Length(MINUTE, saved(step=60, steps=60, seconds=61.0)).steps == 60


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        (TrainingConfig(minutes=0.5), r"has trained 1\.0 minutes; training\.minutes 0\.5 is less"),
        (TrainingConfig(steps=59), r"has 60 steps; training\.steps 59 is less"),
    ],
)
def test_a_run_cannot_be_made_shorter_than_it_is(training: TrainingConfig, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Length(training, saved(step=60, steps=60, minutes=1.0, seconds=60.0))


def test_only_a_run_of_minutes_finds_its_threads(
    run_config: RunConfig,
    shards: Shards,
    world: dist.World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int | None, bool]] = []

    class Noted(Threads):
        def __init__(self, given: int | None = None, fixed: bool = False) -> None:
            asked.append((given, fixed))
            super().__init__(given, fixed)

    monkeypatch.setattr(loop, "Threads", Noted)
    for number, (steps, minutes) in enumerate([(2, None), (None, 1.0)]):
        training = replace(run_config.training, steps=steps, minutes=minutes, threads=1)
        trainer = Trainer(replace(run_config, training=training), shards, world)
        Loop(trainer, tmp_path / str(number))
    assert asked == [(1, True), (1, False)]
