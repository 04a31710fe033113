"""What a checkpoint holds is not used where a bit of it has changed, or where it is not whole."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.common import integrity
from data.common.command import dump_config, load_config
from data.shards import Shards
from lm.inference.loading import load_run
from lm.runs import checkpoints
from lm.runs.run_config import RunConfig, read_config, write_config
from lm.training import dist
from lm.training.trainer import Trainer
from tests.damage import flip, flips

FILES = ["model.safetensors", "optimizer-0.safetensors", "rank-0.safetensors", "state.json"]
SPARSE_FILES = ["sparse.safetensors", "reservoir-00000005.safetensors"]


@pytest.fixture
def copied(trained_run: Path, sparse_run: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Function from a file's name to it in a copy of the newest checkpoint of a run that has it."""

    def copy(name: str) -> Path:
        run = shutil.copytree(sparse_run if name in SPARSE_FILES else trained_run, tmp_path / "run")
        folder = checkpoints.newest(run)
        assert folder is not None
        # Hard links, by which checkpoints share files, are copied as files of their own.
        return folder / name

    return copy


def trainer_of(file: Path, shards: Shards, world: dist.World) -> Trainer:
    config = load_config(RunConfig, file.parents[2] / "config.yaml")
    return Trainer(config, shards, world, file.parent)


@pytest.mark.parametrize("name", FILES + SPARSE_FILES)
def test_a_flipped_bit_ends_a_resume(
    copied: Callable[[str], Path], name: str, shards: Shards, world: dist.World
) -> None:
    file, rng = copied(name), random.Random(name)
    size = file.stat().st_size
    for place in [
        rng.randrange(size // 2),
        *(rng.randrange(size // 2, size - 2) for _ in range(3)),
    ]:
        whole = flip(file, 8 * place + rng.randrange(8))
        with pytest.raises(ValueError, match="use another checkpoint") as error:
            trainer_of(file, shards, world)
        assert str(file) in str(error.value)
        file.write_bytes(whole)


@pytest.mark.parametrize("name", ["model.safetensors", "sparse.safetensors"])
@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_flipped_bit_ends_what_loads_a_run(
    copied: Callable[[str], Path], name: str, place: float
) -> None:
    file = copied(name)
    flip(file, int(8 * file.stat().st_size * place))
    with pytest.raises(ValueError, match="use another checkpoint"):
        load_run(file.parents[2])


def rewritten(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """The file as a program would write it that knows no hashes, with something changed."""
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def put(name: str, value: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda tensors: tensors.__setitem__(name, value)


BIAS = "blocks.0.attention_norm.weight"


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("model.safetensors", lambda t: t.pop(BIAS), f"it lacks {BIAS}"),
        ("model.safetensors", put("strange", torch.ones(1)), "it has strange"),
        ("model.safetensors", lambda t: t.clear(), "it lacks"),
        ("model.safetensors", put(BIAS, torch.ones(3)), r"as float32 \[3\], not as float32 \[16\]"),
        ("model.safetensors", put(BIAS, torch.ones(16).double()), r"as float64 \[16\], not as"),
        ("model.safetensors", put(BIAS, torch.full((16,), torch.nan)), "not finite"),
        ("model.safetensors", put(BIAS, torch.full((16,), torch.inf)), "not finite"),
        ("optimizer-0.safetensors", lambda t: t.pop(f"{BIAS}/exp_avg"), f"whole state of {BIAS}"),
        (
            "optimizer-0.safetensors",
            put(f"{BIAS}/exp_avg", torch.ones(3)),
            f"whole state of {BIAS}",
        ),
        ("optimizer-0.safetensors", put("strange/step", torch.ones(())), "whole state of strange"),
        ("rank-0.safetensors", lambda t: t.pop("memory.1"), "lacks memory.1"),
        ("rank-0.safetensors", lambda t: t.pop("rng.cpu"), "lacks rng.cpu"),
        ("rank-0.safetensors", put("rng.cpu", torch.zeros(3).byte()), "random generators"),
        ("rank-0.safetensors", put("memory.0", torch.ones(4, 7, 16)), r"not as numbers \[any, 8"),
        ("rank-0.safetensors", put("memory_count", torch.full((4,), 9)), "more slots in memory"),
        ("rank-0.safetensors", put("memory_count", torch.zeros(4)), "not as int64"),
        ("rank-0.safetensors", put("memory_count", torch.zeros(3).long()), "numbers of lanes"),
        ("sparse.safetensors", lambda t: t.clear(), "lacks"),
        ("reservoir-00000005.safetensors", lambda t: t.clear(), "lacks"),
    ],
)
def test_tensors_that_are_not_those_of_the_run_are_refused(
    copied: Callable[[str], Path],
    name: str,
    change: Callable[[dict[str, torch.Tensor]], Any],
    complaint: str,
    shards: Shards,
    world: dist.World,
) -> None:
    file = copied(name)
    rewritten(file, change)
    with pytest.raises(ValueError, match=complaint) as error:
        trainer_of(file, shards, world)
    assert str(file.parent) in str(error.value) and "use another checkpoint" in str(error.value)


@pytest.mark.parametrize("entry", ["index", "left"])
@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_sets_of_units_that_there_are_not_are_refused(
    copied: Callable[[str], Path], entry: str, wrong: int, shards: Shards, world: dist.World
) -> None:
    file = copied("sparse.safetensors")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        key = next(key for key in tensors if key.endswith(entry) and len(tensors[key]))
        tensors[key][0] = wrong

    rewritten(file, change)
    with pytest.raises(ValueError, match=r"chooses units of .* that there are not"):
        trainer_of(file, shards, world)
    with pytest.raises(ValueError, match=r"chooses units of .* that there are not"):
        load_run(file.parents[2])


@pytest.mark.parametrize("name", [*FILES, *SPARSE_FILES])
def test_an_empty_or_missing_file_is_a_sentence(
    copied: Callable[[str], Path],
    name: str,
    shards: Shards,
    world: dist.World,
) -> None:
    file = copied(name)
    for content in (b"", b"{}", bytes(1000), None):
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
        with pytest.raises((ValueError, OSError)) as error:
            trainer_of(file, shards, world)
        assert str(file) in str(error.value)


WRONG: dict[str, list[Any]] = {
    "step": [None, "5", -1, 1.5, True, [5]],
    "ranks": [None, "1", -1, {}],
    "shards": [None, 3],
    "vocabulary": [3, {}, {"hash": "x"}, {"hash": "x", "size": 0}],
    "lanes": [3, {"step": "x"}, {"step": [None]}, {"step": -1}],
    "skipped": ["0", -1],
    "sparse": [3, {"reservoir": "../x"}, {"reservoir": "x", "changed": {}, "routes": {}}],
    "probe": ["1", [], {}],
    "validation_bits_per_byte": ["1", []],
    "steps": [0, "x"],
    "seconds": ["x"],
    "unheard_of": [1],
}


@pytest.mark.parametrize("key", WRONG)
def test_every_field_of_the_state_is_checked(trained_run: Path, key: str, tmp_path: Path) -> None:
    folder = checkpoints.newest(trained_run)
    assert folder is not None
    state = json.loads((folder / checkpoints.STATE).read_text())
    del state["sha256"]
    values = [{**state, key: value} for value in WRONG[key]]
    if key in ("step", "ranks", "shards"):
        values.append({k: v for k, v in state.items() if k != key})
    for value in values:
        (tmp_path / checkpoints.STATE).write_text(json.dumps(value))
        with pytest.raises(ValueError, match=f"state.json: {key}.*use another checkpoint"):
            checkpoints.read_state(tmp_path)


def test_a_checkpoint_without_hashes_is_read_and_that_is_said(
    copied: Callable[[str], Path],
    shards: Shards,
    world: dist.World,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(integrity, "_said", set())
    folder = copied("state.json").parent
    for file in folder.glob("*.safetensors"):
        rewritten(file, lambda _: None)
    state = json.loads((folder / checkpoints.STATE).read_text())
    del state["sha256"]
    (folder / checkpoints.STATE).write_text(json.dumps(state | {"sparse": {}}))
    assert trainer_of(folder / "x", shards, world).step == 12
    assert capsys.readouterr().err.count("is read unchecked") == 1


def test_a_flipped_bit_of_a_config_is_not_read(
    run_config: RunConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(integrity, "_said", set())
    path = tmp_path / "config.yaml"
    write_config(path, run_config)
    for _ in flips(path, 30, header=9):
        with pytest.raises(ValueError, match=r"config\.yaml .*put back the file as it was"):
            read_config(path)
    assert read_config(path) == run_config and not capsys.readouterr().err
    path.write_text(dump_config(run_config))
    assert read_config(path) == run_config
    assert capsys.readouterr().err.count("is read unchecked") == 1
    path.write_text("model: {layers: many}\n")
    with pytest.raises(ValueError, match=r"config\.yaml: .*put back the file as it was"):
        read_config(path)
