"""Training steps in one process: arithmetic, resuming, refusals."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from data.shards import Shards
from lm.model import MemoryState
from lm.training import checkpoint, dist
from lm.training.config import RunConfig, resumed
from lm.training.runlog import read_metrics
from lm.training.trainer import Loop, NonFiniteError, Trainer, measured_steps


@pytest.fixture(scope="module")
def world() -> dist.World:
    return dist.join()


def memory_tensors(memory: MemoryState) -> list[torch.Tensor]:
    return [*memory.memory, *memory.compressed, memory.memory_count, memory.compressed_count]


def test_a_step_equals_plain_torch(
    run_config: RunConfig, shards: Shards, world: dist.World
) -> None:
    """Several steps under DeepSpeed against autograd and torch's AdamW by hand."""
    config = replace(run_config, model=replace(run_config.model, dropout=0.0))
    ours, plain = Trainer(config, shards, world), Trainer(config, shards, world)
    for _ in range(6):
        result = ours.train_step(12)
        batch = plain.lanes.next()
        inputs, targets = torch.from_numpy(batch.inputs_BT), torch.from_numpy(batch.targets_BT)
        plain.memory = plain.memory.reset(torch.from_numpy(batch.reset_B))
        output = plain.model(inputs, plain.memory)
        nats = F.cross_entropy(output.predictions.flatten(0, 1), targets.flatten())
        part = output.auxiliary["reconstruction"]
        (nats + part.total / part.elements.clamp(min=1)).backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.model.parameters(), config.optim.clip)
        for group in plain.optimizer.param_groups:
            group["lr"] = result["lr"]
        plain.optimizer.step()
        plain.optimizer.zero_grad()
        plain.memory = output.memory.detach()
        assert result["nats"] / result["tokens"] == pytest.approx(nats.item(), rel=1e-5)
        assert result["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for mine, theirs in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_resume_is_bitwise(
    run_config: RunConfig, shards: Shards, world: dist.World, tmp_path: Path
) -> None:
    """Losses, weights and memory of a resumed run, dropout included."""
    whole = Trainer(run_config, shards, world)
    Loop(whole, tmp_path).train()
    records = {r["step"]: r for r in read_metrics(tmp_path / "metrics.jsonl") if "loss" in r}
    again = Trainer(run_config, shards, world)
    again.restore(checkpoint.find(tmp_path, "step-00000010"))
    assert again.step == 10
    for step in (11, 12):
        result = again.train_step(12)
        assert result["nats"] / result["tokens"] == records[step]["loss"]
        assert result["grad_norm"] == records[step]["grad_norm"]
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for a, b in zip(memory_tensors(again.memory), memory_tensors(whole.memory), strict=True):
        assert torch.equal(a, b)


def test_only_the_newest_checkpoints_are_kept_and_partial_ones_are_not_seen(
    run_config: RunConfig, shards: Shards, world: dist.World, tmp_path: Path
) -> None:
    trainer = Trainer(run_config, shards, world)
    for step in (1, 2, 3):
        trainer.step = step
        trainer.save(tmp_path)
    folder = tmp_path / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step-00000002", "step-00000003"]
    (folder / ".step-00000004.partial").mkdir()
    newest = checkpoint.newest(tmp_path)
    assert newest is not None and newest.name == "step-00000003"
    with pytest.raises(ValueError, match="step-00000002, step-00000003"):
        checkpoint.find(tmp_path, "step-00000001")


def test_non_finite_values_stop_before_the_weights_move(
    run_config: RunConfig, shards: Shards, world: dist.World
) -> None:
    trainer = Trainer(run_config, shards, world)
    trainer.train_step(12)
    weight = trainer.model.layers[1].feedforward.inner.weight
    handle = weight.register_hook(lambda gradient: gradient * float("nan"))
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(NonFiniteError, match=r"step 2: .*blocks\.1\.feedforward\.inner\.weight"):
        trainer.train_step(12)
    handle.remove()
    for parameter, old in zip(trainer.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_minutes_become_steps(run_config: RunConfig, shards: Shards, world: dist.World) -> None:
    training = replace(run_config.training, steps=None, minutes=1.0)
    config = replace(run_config, training=training)
    long = measured_steps(config, shards, world)
    short = measured_steps(replace(config, training=replace(training, minutes=1e-6)), shards, world)
    assert short == 1 and long > 100


def test_a_run_of_another_kind_is_not_continued(run_config: RunConfig) -> None:
    other = replace(run_config, model=replace(run_config.model, width=32))
    with pytest.raises(ValueError, match=r"model\.width 16, not 32"):
        resumed(other, run_config, "runs/x")
    logs = replace(run_config, training=replace(run_config.training, log_every=7))
    assert resumed(logs, run_config, "runs/x").training.log_every == 7
    measured = replace(run_config.training, steps=None, minutes=3.0)
    assert resumed(replace(run_config, training=measured), run_config, "x").training.steps == 12


def test_lanes_must_fit_the_ranks(run_config: RunConfig, shards: Shards) -> None:
    world = dist.World(0, 3, torch.device("cpu"))
    with pytest.raises(ValueError, match="multiple of the number of ranks"):
        Trainer(run_config, shards, world)


def test_validation_is_the_scorer(run_config: RunConfig, shards: Shards, world: dist.World) -> None:
    from lm.scoring import ScoringConfig, score

    trainer = Trainer(run_config, shards, world)
    value = trainer.validate()
    direct = score(trainer.model, shards.split("validation"), ScoringConfig(lanes=8), limit=4)
    assert value == direct.bits_per_byte and 4 < value < 12
