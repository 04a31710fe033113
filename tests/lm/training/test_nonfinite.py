"""What is said of steps that were left out."""

from collections import Counter
from pathlib import Path

import pytest

from data.shards import Shards
from lm.objectives.teacher_config import TeacherConfig
from lm.runs import checkpoints
from lm.runs.run_config import RunConfig
from lm.runs.runlog import read_metrics
from lm.training import dist
from lm.training.engine import Engine
from lm.training.trainer import Trainer
from tests.runs import train_here, with_training


def test_steps_that_were_left_out_are_told_at_the_end(
    run_config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A few with a warning, most with an error, and again when nothing is left to do."""
    original, steps = Engine.update, Counter[Engine]()
    bad = {3, 4}

    def update(engine: Engine, finite: bool) -> float | None:
        steps[engine] += 1
        return original(engine, finite and steps[engine] - 1 not in bad)

    monkeypatch.setattr(Engine, "update", update)
    config = with_training(run_config, non_finite="skip", log_every=5)
    assert train_here(config, tmp_path / "few") == 0
    assert "warning: 2 of 12 steps were left out" in capfd.readouterr().err
    records = read_metrics(tmp_path / "few" / "metrics.jsonl")
    logs = [record for record in records if "tokens_per_second" in record]
    assert [record.get("skipped") for record in logs] == [2, 2, 2]
    assert logs[-1]["skipped_share"] == pytest.approx(1 / 6)
    bad |= set(range(2, 11))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"9 of 12 steps were left out, .*lower optim\.lr"):
            train_here(config, tmp_path / "most")
    assert max(checkpoints.listed(tmp_path / "most")) == 12


def test_a_document_that_begins_in_a_step_that_is_left_out_begins_with_nothing(
    run_config: RunConfig, shards: Shards, trained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the model's memory nor its teacher's reaches into it from the document before."""
    original, left_out = Engine.update, [False]
    monkeypatch.setattr(
        Engine, "update", lambda engine, finite: original(engine, finite and not left_out[0])
    )
    config = with_training(
        run_config,
        order="documents",
        reset_documents=True,
        non_finite="skip",
        unroll=2,
        teacher=TeacherConfig(trained_run),
    )
    trainer = Trainer(config, shards, dist.join())
    read, begun = trainer.lanes.next, []

    def noted():
        segment, scored = read()
        begun.append(segment.reset_B)
        return segment, scored

    monkeypatch.setattr(trainer.lanes, "next", noted)
    both, counts = [], []
    for step in range(40):
        left_out[0] = step > 2
        before = trainer.memory.counts["memory"].clone()
        begun.clear()
        trainer.train_step(40)
        if left_out[0]:
            resets = begun[0] | begun[1]
            kept = [trainer.memory, trainer.teacher.state.memory]
            for memory in kept:
                assert not memory.counts["memory"][resets].any()
            assert (kept[0].counts["memory"][~resets] == before[~resets]).all()
            both.append(bool(resets.any() and not resets.all()))
            counts.append(int((before[resets] > 0).sum()))
    assert any(both) and any(counts)
