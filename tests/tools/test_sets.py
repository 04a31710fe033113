"""What choices of sets did in finished runs."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.shards import Shards
from lm.inference.loading import load_run
from lm.runs.run_config import RunConfig
from lm.sparse.sparse_config import SparseConfig
from tests.runs import finished, with_training
from tools import choices, sets


@pytest.fixture(scope="module")
def static_run(
    run_config: RunConfig, shards: Shards, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run of two steps that hardly moves its weights."""
    sparse = SparseConfig(0.5, refresh=None, choice="random")
    optim = replace(run_config.optim, lr=1e-7, floor=0.0)
    config = replace(with_training(run_config, steps=2), sparse=sparse, optim=optim)
    return finished(config, shards, tmp_path_factory.mktemp("static"))


def test_weights_are_compared_with_those_of_the_runs_own_seed(
    static_run: Path, sparse_run: Path
) -> None:
    still = choices.compare(load_run(static_run))
    # Of a truncated normal 7.4 % are below a tenth of its spread.
    assert still.flipped < 0.001 and still.faded == pytest.approx(0.08, abs=0.02)
    assert still.number == pytest.approx(0.5 * 2 * (16 * 16 * 6 + 2 * 16 * 32), rel=0.01)
    moved = load_run(static_run)
    with torch.no_grad():
        moved.model.layers[0].feedforward.outer.weight.neg_()
    share = 0.5 * 16 * 32 / still.number
    assert choices.compare(moved).flipped == pytest.approx(share, rel=0.01)
    # Blocks of a quarter of the feed-forward alone; its powers are compared as weights.
    assert choices.compare(load_run(sparse_run)).flipped < 0.5


def test_rises_of_the_loss_are_seen_beside_another_run(
    sparse_run: Path, trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "sets.json"
    sets.main([sparse_run], [trained_run], (1, 3, 9), file)
    (result,) = json.loads(file.read_text())
    # Twelve steps, sets chosen after 3, 6, 9: the last choice's statistics come with step 10.
    assert [(part["first"], part["last"]) for part in result["choices"]] == [(1, 2), (3, 3)]
    excess = (choices.losses(sparse_run) - choices.losses(trained_run)).tolist()
    rise = sum(excess[9:11]) / 2 - sum(excess[6:9]) / 3
    assert result["choices"][1]["rise"] == pytest.approx(rise / math.log(2))
    assert result["choices"][1]["left"] is None
    records = [json.loads(x) for x in (sparse_run / "metrics.jsonl").read_text().splitlines()]
    changed = {r["step"]: r["sparse_changed"] for r in records if "sparse_changed" in r}
    first = (changed[4] + changed[7]) / 2
    assert result["choices"][0]["exchanged"] == pytest.approx(first)
    assert "choices 1 to 2 exchanged" in capsys.readouterr().out


def test_what_is_left_of_a_rise() -> None:
    excess = torch.zeros(200, dtype=torch.float64)
    excess[100:102], excess[120:140] = 3 * math.log(2), math.log(2)
    assert choices.change(excess, [100], 50, choices.JUMP) == pytest.approx(3)
    assert choices.change(excess, [100], 50, choices.LATER) == pytest.approx(1)
    assert choices.change(excess, [100], 30, choices.LATER) is None
    assert choices.change(excess, [170], 50, choices.LATER) is None


def test_a_run_without_choices_says_nothing_of_them(
    static_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sets.main([static_run])
    assert "another sign" in (out := capsys.readouterr().out) and "choices" not in out


def test_mistakes_are_sentences(sparse_run: Path, static_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one run"):
        sets.main([])
    with pytest.raises(ValueError, match="1 runs and 2 beside"):
        sets.main([sparse_run], [sparse_run, sparse_run])
    with pytest.raises(ValueError, match=r"12 steps and .* 2"):
        sets.main([sparse_run], [static_run])
    begun = shutil.copytree(sparse_run, tmp_path / "begun")
    (begun / "origin.json").write_text("{}")
    with pytest.raises(ValueError, match="began with the weights of another run, not of a seed"):
        sets.main([begun])
    with pytest.raises(ValueError, match="rising numbers"):
        sets.main([sparse_run], groups=(5, 1))
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n')
    with pytest.raises(ValueError, match="log_every 1"):
        sets.main([sparse_run], [tmp_path])
