"""New runs that begin with the weights of others: what they take, record, and refuse."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from data.common.command import dump_config
from data.common.files import hash_file, read_json
from data.shards import Shards
from lm.runs import checkpoints
from lm.runs.run_config import RunConfig, RunFolder, read_config
from lm.train import inherited
from lm.training import dist
from lm.training.origin import Origin, find_origin
from lm.training.trainer import Trainer
from tests.processes import ends, start, train
from tests.runs import train_here, with_training


def origin_of(run: Path, config: RunConfig, shards: Shards, name: str | None = None) -> Origin:
    found = find_origin(RunFolder(Path("new"), None, run, name), config, shards.vocabulary.hash)
    assert found is not None
    return found


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    newest = checkpoints.newest(run)
    assert newest is not None
    return load_file(newest / checkpoints.WEIGHTS)


@pytest.mark.parametrize("zero", [0, 3])
def test_a_new_run_begins_with_the_weights_and_nothing_else(
    run_config: RunConfig, shards: Shards, world: dist.World, trained_run: Path, zero: int
) -> None:
    config = with_training(run_config, zero=zero, seed=5, lanes=2)
    trainer = Trainer(config, shards, world, None, origin_of(trained_run, config, shards))
    stored = weights_of(trained_run)
    assert {name for name, _ in trainer.engine.weights()} == stored.keys()
    for name, weight in trainer.engine.weights():
        assert torch.equal(weight, stored[name]), name
    assert trainer.step == 0 and not list(trainer.engine.state())
    assert not trainer.memory.memory_count.any()
    assert trainer.origin is not None and not trainer.origin.initialised


def test_other_lengths_and_another_compression_leave_the_rest_as_it_was(
    run_config: RunConfig, shards: Shards, world: dist.World, trained_run: Path
) -> None:
    model = replace(
        run_config.model, segment=12, memory=16, compressed=6, rate=3, compression="dilated"
    )
    config = replace(run_config, model=model)
    trainer = Trainer(config, shards, world, None, origin_of(trained_run, config, shards))
    stored, new = weights_of(trained_run), trainer.origin
    assert new is not None
    assert new.model["rate"] == 3
    assert new.initialised and all(".compression." in name for name in new.initialised)
    for name, weight in trainer.engine.weights():
        same = name in stored and torch.equal(weight, stored[name])
        assert same != (name in new.initialised), name
    assert trainer.train_step(12)["nats"] > 0


def test_memory_may_be_had_that_was_not(
    run_config: RunConfig, shards: Shards, world: dist.World, tmp_path: Path
) -> None:
    short = replace(run_config, model=replace(run_config.model, compressed=0))
    assert train_here(with_training(short, steps=2), tmp_path / "xl") == 0
    trainer = Trainer(
        run_config, shards, world, None, origin_of(tmp_path / "xl", run_config, shards)
    )
    assert trainer.origin is not None
    kinds = {name.split(".")[3] for name in trainer.origin.initialised}
    assert kinds == {"compressed_position_key", "compressed_position_bias", "projection"}


def test_a_run_says_where_it_comes_from_and_goes_on_without(
    run_config: RunConfig, trained_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Printed, in origin.json, and the other run may be gone when it is resumed."""
    source, run = tmp_path / "source", tmp_path / "new"
    shutil.copytree(trained_run, source)
    name = "step-00000010"
    config = with_training(
        replace(run_config, model=replace(run_config.model, rate=4)), steps=3, learn="compression"
    )
    assert train_here(config, run, source=source, source_checkpoint=name) == 0
    said = capfd.readouterr().err
    assert f"begin with the weights of {source}, {name}, with model.rate 4" in said
    assert "compression.projection begin as initialised (2 weights)" in said
    assert " learn)" in said
    record = read_json(run / "origin.json")
    assert record["weights"] == hash_file(source / "checkpoints" / name / checkpoints.WEIGHTS)
    assert (record["run"], record["checkpoint"]) == (str(source), name)
    before = load_file(source / "checkpoints" / name / checkpoints.WEIGHTS)
    kept = {k: weight for k, weight in weights_of(run).items() if ".compression." not in k}
    assert all(torch.equal(weight, before[key]) for key, weight in kept.items())
    shutil.rmtree(source)
    assert inherited({"from": source, "run": run})["model.rate"] == 4
    longer = with_training(config, steps=5)
    assert train_here(longer, run, source=source) == 0
    assert checkpoints.newest(run) == run / "checkpoints" / "step-00000005"
    assert read_config(run / "config.yaml").training.steps == 5
    with pytest.raises(ValueError, match="began with the weights of"):
        train_here(longer, run, source=tmp_path / "other")


def test_settings_that_are_not_stated_are_those_of_the_run(
    run_config: RunConfig, trained_run: Path, tmp_path: Path
) -> None:
    found = inherited({"from": trained_run, "run": tmp_path / "new", "model.rate": 4})
    assert found == {f"model.{n}": value for n, value in asdict(run_config.model).items()}
    assert inherited({"run": tmp_path / "new"}) == {}


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("zero", "learn"), [(1, "compression"), (2, "lora"), (3, "compression"), (3, "lora")]
)
def test_two_ranks_begin_with_weights_and_keep_them(
    run_config: RunConfig, trained_run: Path, tmp_path: Path, zero: Any, learn: Any
) -> None:
    """From the command line; the model's settings are not stated."""
    if learn == "lora":
        pytest.importorskip("peft")
    config = with_training(run_config, zero=zero, learn=learn, steps=4)
    path = tmp_path / "preset.yaml"
    values = yaml.safe_load(dump_config(config))
    del values["model"]
    path.write_text(yaml.safe_dump(values))
    command = train(path, tmp_path / "new", "--from", str(trained_run))
    for status, said in ends(start(command, 2)):
        assert status == 0, said
    before, after = weights_of(trained_run), weights_of(tmp_path / "new")
    after = {name.replace(".base_layer", ""): weight for name, weight in after.items()}
    moved = {n for n, weight in before.items() if not torch.equal(weight, after[n])}
    assert moved and all(".compression." in name for name in moved)
    assert len(after) > len(before) or learn == "compression"


@pytest.mark.bad_input("lm.train")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 32}, r"are for model\.width 16, not 32: leave it out"),
        ({"heads": 4}, r"are for model\.heads 2, not 4"),
        ({"activation": "gelu"}, r"are for model\.activation relu, not gelu"),
        ({"positions": "rotary"}, r"are for model\.positions relative, not rotary"),
    ],
    ids=str,
)
def test_weights_are_not_taken_for_what_they_are_not(
    run_config: RunConfig, shards: Shards, trained_run: Path, changes: dict[str, Any], message: str
) -> None:
    config = replace(run_config, model=replace(run_config.model, **changes))
    with pytest.raises(ValueError, match=message):
        origin_of(trained_run, config, shards)


@pytest.mark.bad_input("lm.train")
def test_another_vocabulary_is_refused(
    run_config: RunConfig, shards: Shards, trained_run: Path
) -> None:
    at = RunFolder(Path("new"), None, trained_run)
    with pytest.raises(ValueError, match=r"another vocabulary .* --data\.vocabulary_from"):
        find_origin(at, run_config, "0" * 64)


@pytest.mark.bad_input("lm.train")
def test_no_run_no_checkpoint_and_sparse_matrices_are_refused(
    run_config: RunConfig, shards: Shards, trained_run: Path, sparse_run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="holds no run"):
        origin_of(tmp_path, run_config, shards)
    with pytest.raises(ValueError, match=r"--from .* holds no run"):
        inherited({"from": tmp_path})
    with pytest.raises(ValueError, match="has no checkpoint step-00000007"):
        origin_of(trained_run, run_config, shards, "step-00000007")
    with pytest.raises(ValueError, match="sparse matrices or powers"):
        origin_of(sparse_run, run_config, shards)
    with pytest.raises(ValueError, match="name it with --from"):
        find_origin(RunFolder(tmp_path, None, None, "step-00000010"), run_config, "")
