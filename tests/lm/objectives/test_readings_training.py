"""Further readings in training: every ZeRO stage, ranks and parts, resume, and what is logged."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data.shards import Shards
from lm.objectives.readings_config import ReadingsConfig
from lm.runs.run_config import RunConfig
from lm.training import dist, engine
from lm.training.trainer import Trainer
from tests.processes import ends, start, write_config
from tests.runs import saved, with_training

READINGS = ReadingsConfig(local="segment", far=True, every=2, nats=0.5, agreement=0.2, default=0.1)
LOGGED = {"nats_local", "nats_far", "agreement", "agreement_full_far", "worth"}


@pytest.fixture(autouse=True)
def _partition_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PERSISTENT", 0)


@pytest.fixture(scope="module")
def config(run_config: RunConfig) -> RunConfig:
    """Without dropout, whose random numbers differ between stages."""
    smooth = replace(
        run_config,
        model=replace(run_config.model, dropout=0.0),
        optim=replace(run_config.optim, eps=1e-4),
    )
    return with_training(smooth, readings=READINGS)


def results(config: RunConfig, shards: Shards, steps: int = 3, **changes: object) -> list:
    trainer = Trainer(with_training(config, **changes), shards, dist.join())
    return [trainer.train_step(12) for _ in range(steps)]


@pytest.mark.parametrize("head", ["plain", "adaptive", "parts"])
def test_stages_and_parts_agree(config: RunConfig, shards: Shards, head: str) -> None:
    heads = {"plain": {}, "adaptive": {"cutoffs": (64, 128)}, "parts": {"head_chunk": 5}}
    config = replace(config, model=replace(config.model, **heads[head]))
    first = results(config, shards)
    assert first[0].keys() >= LOGGED
    again = {"micro_batches": 2, "activation_checkpointing": True}
    for changes in ({"zero": 1}, {"zero": 2, **again}, {"zero": 3}):
        for mine, theirs in zip(first, results(config, shards, **changes), strict=True):
            for name in ("nats", "grad_norm", *LOGGED):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-4), (changes, name)


def test_half_precision_is_close(config: RunConfig, shards: Shards) -> None:
    """Divergences are taken in float32 of what bfloat16 makes."""
    first = results(config, shards)
    for zero in (0, 2):
        half = results(config, shards, zero=zero, precision="bf16")
        for mine, theirs in zip(first, half, strict=True):
            for name in ("nats", "nats_local", "nats_far"):
                assert mine[name] == pytest.approx(theirs[name], rel=0.02)
            assert mine["agreement"] == pytest.approx(theirs["agreement"], rel=0.15, abs=1e-3)


def test_it_resumes_to_the_bit(run_config: RunConfig, shards: Shards, tmp_path: Path) -> None:
    """With dropout, memory dropout, and other lanes at each step."""
    config = with_training(run_config, readings=replace(READINGS, again=True, hide=0.3), unroll=2)
    whole = Trainer(config, shards, dist.join())
    whole.train_step(12)
    folder = saved(whole, tmp_path)
    expected = [whole.train_step(12) for _ in range(2)]
    again = Trainer(config, shards, dist.join(), folder)
    assert [again.train_step(12) for _ in range(2)] == expected
    assert "agreement_full_again" in expected[0]


def test_weights_of_zero_are_the_plain_run(config: RunConfig, shards: Shards) -> None:
    """To rounding: readings that are only shown change nothing that is learnt."""
    shown = results(config, shards, readings=ReadingsConfig(local="segment", far=True))
    plain = results(config, shards, readings=ReadingsConfig())
    for mine, theirs in zip(shown, plain, strict=True):
        assert mine["nats"] == pytest.approx(theirs["nats"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert mine["reconstruction"] == pytest.approx(theirs["reconstruction"], rel=1e-4)
    weighted = results(config, shards)
    assert weighted[0]["grad_norm"] != pytest.approx(plain[0]["grad_norm"], rel=1e-2)


def test_lanes_must_divide(config: RunConfig, shards: Shards) -> None:
    wrong = with_training(config, readings=replace(READINGS, every=3))
    with pytest.raises(ValueError, match=r"every must divide the 4 lanes .* which 3 does not"):
        Trainer(wrong, shards, dist.join())


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks_are_one_in_float64(config: RunConfig, tmp_path: Path) -> None:
    """Losses, norms and weights, with documents that end elsewhere on every lane."""
    training = replace(
        config.training,
        order="documents",
        reset_documents=True,
        lanes=8,
        micro_batches=2,
        accumulate=((0, 1), (3, 2)),
    )
    path, seen = write_config(replace(config, training=training), tmp_path), []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.json"
        command = [sys.executable, "-m", "tests.float64", str(path), str(out)]
        assert [status for status, _ in ends(start(command, ranks))] == [0] * ranks
        seen.append(json.loads(out.read_text()))
    one, two = seen
    for mine, theirs in zip(one["steps"], two["steps"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-12)
        assert mine.keys() >= LOGGED
    assert one["weights"] == pytest.approx(two["weights"], rel=1e-9, abs=1e-12)
