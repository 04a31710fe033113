"""Fixtures for tests that train: small shards, the config of a tiny run, and the run itself."""

import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

import lm.train
from data.options import DataConfig
from data.prepare import prepare
from data.shards import Shards, open_shards
from lm.model.model_config import ModelConfig
from lm.runs import checkpoints
from lm.runs.run_config import OptimConfig, RunConfig, RunFolder, TrainingConfig, write_config
from lm.sparse.sparse_config import PowerConfig, SparseConfig
from lm.training import dist
from lm.training.loop import Loop
from lm.training.trainer import Trainer
from tests.hub_tokenizers import write_tokenizer

WORDS = "the a long book of memory and time was read by one who wrote it down again".split()


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    """Byte shards of forty made-up documents, about 40 kB."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    for document in range(40):
        words = rng.choices(WORDS, k=rng.randint(50, 350))
        (folder / f"{document:02}.txt").write_text(" ".join(words) + ".\n")
    target = tmp_path_factory.mktemp("shards") / "text"
    prepare(DataConfig(corpus="text", source=str(folder), shards=target))
    return open_shards(target)


@pytest.fixture(scope="session")
def run_config(shards: Shards) -> RunConfig:
    """A run of twelve steps of a tiny model whose memories overflow many times."""
    return RunConfig(
        data=DataConfig(corpus="text", shards=Path(shards.path)),
        model=ModelConfig(
            layers=2,
            width=16,
            heads=2,
            feedforward=32,
            segment=8,
            memory=8,
            compressed=4,
            rate=2,
            dropout=0.1,
        ),
        optim=OptimConfig(lr=3e-3, warmup=3),
        training=TrainingConfig(
            steps=12, lanes=4, log_every=1, save_every=5, validate_every=6, validation_segments=4
        ),
    )


@pytest.fixture(scope="session")
def trained_run(
    run_config: RunConfig, shards: Shards, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run's folder as lm.train leaves it; tests must not change it."""
    return finished(run_config, shards, tmp_path_factory.mktemp("run"))


def finished(config: RunConfig, shards: Shards, folder: Path) -> Path:
    """Train a run to its end."""
    write_config(folder / "config.yaml", config)
    (folder / "vocabulary").mkdir()
    shards.vocabulary.save(folder / "vocabulary")
    Loop(Trainer(config, shards, dist.join()), folder).train()
    return folder


@pytest.fixture(scope="session")
def hf_run(run_config: RunConfig, shards: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on this text in tokens of a small tokenizer of the Hugging Face hub, with a chat
    template; tests must not change it."""
    folder = tmp_path_factory.mktemp("hf")
    tokenizer = write_tokenizer("llama3", folder / "tokenizer", template=True)
    source = folder / "text"
    source.mkdir()
    for name in shards.splits:
        (source / name).mkdir()
        split = shards.split(name)
        (source / name / "a.txt").write_bytes(split.tokens[:20_000].tobytes())
    data = DataConfig("text", folder / "shards", str(source), f"hf:{tokenizer}")
    made = prepare(data, workers=1)
    (folder / "run").mkdir()
    return finished(replace(run_config, data=data), made, folder / "run")


def with_training(config: RunConfig, **changes: Any) -> RunConfig:
    """The same with other settings of training."""
    return replace(config, training=replace(config.training, **changes))


def saved(trainer: Trainer, run: Path) -> Path:
    """Write a checkpoint at once."""
    loop = Loop(trainer, run)
    loop.saved, loop.previous = -1, checkpoints.newest(run)
    loop.save()
    loop.close_checkpoint()
    folder = checkpoints.newest(run)
    assert folder is not None
    return folder


def train_here(
    config: RunConfig,
    run: Path,
    name: str | None = None,
    source: Path | None = None,
    source_checkpoint: str | None = None,
) -> int:
    """lm.train in this process, which joins once and trains several runs; returns its status.

    Args:
        config: the run's.
        run: its folder.
        name: the checkpoint to go back to.
        source: another run whose weights it begins with.
        source_checkpoint: which of them.
    """
    sections = {section.name: getattr(config, section.name) for section in fields(config)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "leave", lambda world: None)
        try:
            lm.train.main(RunFolder(run, name, source, source_checkpoint), **sections)
        except SystemExit as end:
            return int(end.code or 0)
    return 0


@pytest.fixture(scope="session")
def sparse_run(
    run_config: RunConfig, shards: Shards, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same with sparse feed-forward matrices in blocks, and powers in all; tests must not
    change it."""
    sparse = SparseConfig(
        0.25, 0.25, kinds=("feedforward",), granularity="block", block=4, refresh=3
    )
    config = replace(run_config, sparse=sparse, power=PowerConfig(1.5))
    return finished(config, shards, tmp_path_factory.mktemp("sparse_run"))
