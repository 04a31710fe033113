"""Resuming: bit for bit at every stage, on other stages and ranks, and refused when damaged."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.shards import Shards
from lm.model.memory import MemoryState
from lm.runs import checkpoints
from lm.runs.run_config import OptimConfig, RunConfig
from lm.training import dist
from lm.training.loop import Loop
from lm.training.trainer import Trainer
from tests.damage import rewrite
from tests.runs import saved, with_training

pytestmark = pytest.mark.usefixtures("partition_everything")


def same(a: MemoryState, b: MemoryState) -> bool:
    pairs = zip((*a.memory, *a.compressed), (*b.memory, *b.compressed), strict=True)
    counts = torch.equal(a.memory_count, b.memory_count)
    return counts and all(torch.equal(x, y) for x, y in pairs)


CASES = [
    {
        "zero": 0,
        "micro_batches": 2,
        "accumulate": ((0, 1), (3, 2)),
        "activation_checkpointing": True,
    },
    {"zero": 0, "precision": "bf16"},
    {"zero": 1},
    {"zero": 2, "offload": True},
    {"zero": 2, "precision": "bf16"},
    {"zero": 3},
    {"zero": 3, "precision": "bf16"},
]
MUON = OptimConfig(name="muon", muon_lr=3e-3, lr=3e-3, warmup=3)


@pytest.mark.parametrize(
    ("changes", "optim"), [*((case, None) for case in CASES), ({"zero": 0}, MUON)], ids=str
)
def test_resume_is_bitwise(
    run_config: RunConfig,
    shards: Shards,
    world: dist.World,
    tmp_path: Path,
    changes: dict[str, Any],
    optim: OptimConfig | None,
) -> None:
    """Losses, norms, memory and every stored tensor, dropout included."""
    config = replace(with_training(run_config, **changes), optim=optim or run_config.optim)
    whole = Trainer(config, shards, world)
    for _ in range(4):
        whole.train_step(12)
    folder = saved(whole, tmp_path)
    expected = [whole.train_step(12) for _ in range(3)]
    again = Trainer(config, shards, world, folder)
    assert again.step == 4
    assert [again.train_step(12) for _ in range(3)] == expected
    assert same(again.memory, whole.memory)
    for name, tensors in whole.snapshot().files.items():
        for key, tensor in again.snapshot().files[name].items():
            assert torch.equal(tensor, tensors[key]), key


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_a_run_that_has_grown_is_the_longer_run(
    run_config: RunConfig, shards: Shards, world: dist.World, tmp_path: Path, schedule: Any
) -> None:
    """As long as its rates have not depended on where it was to end."""
    config = replace(
        run_config, optim=replace(run_config.optim, schedule=schedule, decay=10, warmup=3)
    )
    short, long = (with_training(config, steps=steps) for steps in (3, 6))
    for name, plans in (("whole", [long]), ("grown", [short, long])):
        for plan in plans:
            newest = checkpoints.newest(tmp_path / name)
            Loop(Trainer(plan, shards, world, newest), tmp_path / name).train()
    files = [checkpoints.newest(tmp_path / name) for name in ("whole", "grown")]
    whole, grown = (load_file(file / checkpoints.WEIGHTS) for file in files if file is not None)
    assert all(torch.equal(whole[name], weight) for name, weight in grown.items())
    with pytest.raises(ValueError, match=r"has 6 steps; training\.steps 3 is less"):
        Trainer(short, shards, world, files[1])


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 1), (2, 0)])
def test_another_stage_continues_a_run(
    run_config: RunConfig,
    shards: Shards,
    world: dist.World,
    tmp_path: Path,
    before: int,
    after: int,
) -> None:
    run_config = replace(run_config, model=replace(run_config.model, dropout=0.0))
    first = Trainer(with_training(run_config, zero=before), shards, world)
    for _ in range(4):
        first.train_step(12)
    folder = saved(first, tmp_path)
    second = Trainer(with_training(run_config, zero=after), shards, world, folder)
    for _ in range(3):
        mine, theirs = second.train_step(12), first.train_step(12)
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_a_checkpoint_that_does_not_give_its_loss_is_refused(
    run_config: RunConfig, shards: Shards, world: dist.World, tmp_path: Path
) -> None:
    trainer = Trainer(run_config, shards, world)
    trainer.train_step(12)
    folder = saved(trainer, tmp_path)
    tensors = load_file(folder / checkpoints.WEIGHTS)
    weight = tensors["blocks.1.feedforward.outer.weight"]
    weight[0] = weight[0].flip(0) + 0.5
    save_file(tensors, folder / checkpoints.WEIGHTS)
    with pytest.raises(ValueError, match="does not give the loss it was saved with"):
        Trainer(run_config, shards, world, folder)


def test_damaged_files_and_other_shards_are_refused(
    run_config: RunConfig, shards: Shards, world: dist.World, tmp_path: Path
) -> None:
    folder = saved(Trainer(run_config, shards, world), tmp_path)
    for name in (checkpoints.WEIGHTS, "rank-0.safetensors", "optimizer-0.safetensors"):
        copy = shutil.copytree(folder, tmp_path / name)
        (copy / name).write_bytes((copy / name).read_bytes()[:-10])
        with pytest.raises(ValueError, match=rf"{name} cannot be read"):
            Trainer(run_config, shards, world, copy)
    rewrite(folder / "state.json", shards="0" * 64)
    with pytest.raises(ValueError, match="trained on other shards"):
        Trainer(run_config, shards, world, folder)


def test_no_file_of_a_checkpoint_is_a_pickle(
    run_config: RunConfig, shards: Shards, world: dist.World, tmp_path: Path
) -> None:
    for zero in (0, 2, 3):
        trainer = Trainer(with_training(run_config, zero=zero), shards, world)
        trainer.train_step(12)
        folder = saved(trainer, tmp_path / str(zero))
        names = sorted(path.name for path in folder.rglob("*"))
        assert names == [
            "model.safetensors",
            "optimizer-0.safetensors",
            "rank-0.safetensors",
            "state.json",
        ]
        weights = load_file(folder / checkpoints.WEIGHTS)
        assert all(tensor.numel() > 0 for tensor in weights.values())
