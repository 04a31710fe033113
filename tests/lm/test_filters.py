"""What filters hold is part of memory: it trains, resumes bit for bit, and goes to disk."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data.shards import Shards
from lm.inference.inference_config import SamplingConfig
from lm.inference.loading import load_run
from lm.inference.memory_file import load_memory, save_memory
from lm.inference.session import Session, Writing, encode
from lm.runs.run_config import RunConfig
from lm.training import dist
from lm.training.trainer import Trainer
from tests.runs import finished, saved, with_training


@pytest.fixture
def config(run_config: RunConfig) -> RunConfig:
    return replace(run_config, model=replace(run_config.model, filters=5, filter_longest=50.0))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"zero": 2}, marks=pytest.mark.slow),
        pytest.param({"zero": 3, "precision": "bf16"}, marks=pytest.mark.slow),
        {"zero": 0, "precision": "bf16"},
    ],
    ids=str,
)
def test_it_resumes_to_the_bit(
    config: RunConfig, shards: Shards, tmp_path: Path, changes: dict[str, Any]
) -> None:
    world, config = dist.join(), with_training(config, **changes)
    whole = Trainer(config, shards, world)
    for _ in range(4):
        whole.train_step(12)
    folder = saved(whole, tmp_path)
    expected = [whole.train_step(12) for _ in range(3)]
    again = Trainer(config, shards, world, folder)
    assert [again.train_step(12) for _ in range(3)] == expected
    mine, theirs = again.memory.tensors(), whole.memory.tensors()
    assert mine["filters.1"].dtype == torch.float32
    assert mine["filters.1"].abs().max() > 0
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_it_goes_to_disk_and_writes_text(config: RunConfig, shards: Shards, tmp_path: Path) -> None:
    loaded = load_run(finished(config, shards, tmp_path))
    assert loaded.predictor.warmup == 50
    session = Session.begin(loaded.predictor, 1)
    session.read([encode(loaded.vocabulary, b"the book of memory and time was read", "it")])
    save_memory(tmp_path / "memory.safetensors", session)
    again = load_memory(tmp_path / "memory.safetensors", loaded)
    mine, theirs = again.state.reader, session.state.reader
    assert torch.equal(mine.memory.layers[1]["filters"], theirs.memory.layers[1]["filters"])
    assert torch.equal(mine.layers[1].levels_BP, theirs.layers[1].levels_BP)
    assert not torch.equal(mine.layers[1].levels_BP, mine.memory.layers[1]["filters"])
    how = Writing(SamplingConfig(temperature=0), tokens=30, seeds=[0])
    (text,), (same,) = session.write(how), again.write(how)
    assert text == same
    assert len(text) == 30
