"""An objective of one's own moves in: it is written here and named in the config, and trains at
every ZeRO stage, on two ranks, and resumes, with the trainer as it is.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from data.common.command import dump_config, load_config
from data.shards import Shards, open_shards
from lm.objectives.objective import Objective, SegmentRead, Term, total_loss
from lm.objectives.registry import OBJECTIVES, chosen
from lm.runs.run_config import RunConfig
from lm.training import dist, engine
from lm.training.trainer import Trainer
from tests.runs import saved, with_training


class LabelSmoothing(Objective):
    """The mean log-probability of all tokens, raised with a weight that grows to 0.1."""

    logits = True

    def terms(self, read: SegmentRead) -> dict[str, Term]:
        uniform = -F.log_softmax(read.logits_BTV().float(), dim=-1).mean(dim=-1)
        return {"smoothing": Term((uniform * read.scored_BT).sum(), read.scored_BT.sum(), "scored")}

    def weights(self, step: int) -> dict[str, float]:
        return {"smoothing": min(0.1, 0.05 * step)}


NAMES = ("likelihood", "label_smoothing")


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OBJECTIVES, "label_smoothing", LabelSmoothing)
    monkeypatch.setattr(engine, "PERSISTENT", 0)


@pytest.fixture(scope="module")
def config(run_config: RunConfig) -> RunConfig:
    plain = replace(
        run_config,
        model=replace(run_config.model, dropout=0.0),
        optim=replace(run_config.optim, eps=1e-4),
    )
    return with_training(plain, objectives=NAMES)


def results(config: RunConfig, shards: Shards, world: dist.World, **changes: object) -> list:
    trainer = Trainer(with_training(config, **changes), shards, world)
    return [trainer.train_step(12) for _ in range(4)]


def test_stages_agree_and_it_matters(config: RunConfig, shards: Shards) -> None:
    world = dist.join()
    first = results(config, shards, world)
    assert {"smoothing", "reconstruction"} <= first[0].keys()
    for changes in ({"zero": 1}, {"zero": 2, "micro_batches": 2}, {"zero": 3}):
        again = results(config, shards, world, **changes)
        for mine, theirs in zip(first, again, strict=True):
            for name in ("nats", "smoothing", "grad_norm"):
                assert mine[name] == pytest.approx(theirs[name], rel=1e-4)
    plain = results(config, shards, world, objectives=("likelihood",))
    # Its weight is 0 at the first step.
    assert plain[0]["grad_norm"] == pytest.approx(first[0]["grad_norm"], rel=1e-5)
    assert plain[2]["grad_norm"] != pytest.approx(first[2]["grad_norm"], rel=1e-3)


def test_it_resumes_to_the_bit(config: RunConfig, shards: Shards, tmp_path: Path) -> None:
    world = dist.join()
    whole = Trainer(config, shards, world)
    for _ in range(2):
        whole.train_step(12)
    folder = saved(whole, tmp_path)
    expected = [whole.train_step(12) for _ in range(2)]
    again = Trainer(config, shards, world, folder)
    assert [again.train_step(12) for _ in range(2)] == expected


@pytest.mark.dist
def test_two_ranks_are_one(
    config: RunConfig, shards: Shards, tmp_path: Path, free_port: int
) -> None:
    (tmp_path / "config.yaml").write_text(dump_config(config))
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port),
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.lm.objectives.test_objectives", str(tmp_path)],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, messages = process.communicate(timeout=250)
        assert process.returncode == 0, messages
    seen = json.loads((tmp_path / "rank-0.json").read_text())
    alone = results(config, shards, dist.join())
    for mine, theirs in zip(alone, seen, strict=True):
        for name in ("nats", "smoothing", "grad_norm"):
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4)


def test_terms_become_one_number_in_one_place() -> None:
    one, two = (Term(torch.tensor(x), torch.tensor(n)) for x, n in ((6.0, 3), (8.0, 2)))
    assert total_loss({"a": one, "b": two}).item() == 6.0
    assert total_loss({"a": one, "b": two}, weights={"b": 0.5}).item() == 4.0
    factors = {"a": 0.5, "b": torch.tensor(2.0, dtype=torch.float64)}
    assert total_loss({"a": one, "b": two}, factors).item() == 19.0
    assert total_loss({"a": Term(torch.tensor(0.0), torch.tensor(0))}).item() == 0.0


@pytest.mark.parametrize("names", [(), ("label_smoothing",), ("likelihood", "likelihood")])
def test_likelihood_is_always_there_once(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="must name likelihood and each other once"):
        chosen(names)


def test_an_objective_that_is_not_known_is_named() -> None:
    with pytest.raises(ValueError, match="names 'likelyhood'; known are likelihood"):
        chosen(["likelyhood"])


if __name__ == "__main__":
    OBJECTIVES["label_smoothing"] = LabelSmoothing
    folder = Path(sys.argv[1])
    run_config = load_config(RunConfig, folder / "config.yaml")
    world = dist.join()
    seen = results(run_config, open_shards(run_config.data.shards), world)
    (folder / f"rank-{world.rank}.json").write_text(json.dumps(seen))
    dist.leave(world)
