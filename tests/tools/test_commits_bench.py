"""The benchmarks that compare this tree with another commit."""

import subprocess
from pathlib import Path

import pytest

from tools.benchmarks import against, same
from tools.benchmarks.building import random_shards
from tools.commits import ROOT, checkout

PRESET = """
data: {corpus: text, shards: nowhere}
model: {layers: 1, width: 8, heads: 2, feedforward: 8, segment: 4, memory: 4, compressed: 2}
training: {steps: 1, lanes: 2}
"""


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(PRESET)
    return path


def test_a_worker_trains_scores_and_writes(
    tmp_path: Path, preset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {"training": ("step", 2), "scoring": ("segment", 3), "generation": ("token", 4)}
    monkeypatch.setattr(against, "PARTS", parts)
    place = Path(random_shards(tmp_path).path)
    with against.started(ROOT, preset, place, threads=1) as worker:
        for part, (name, _) in parts.items():
            result = against.compared({"old": worker, "new": worker}, part, rounds=3)
            low, high = result["quartiles"]
            assert 0 < low <= result["old_over_new"] <= high
            assert all(value > 0 for value in result[f"milliseconds_a_{name}"].values())


def test_a_worker_that_fails_ends_the_benchmark_in_a_sentence(tmp_path: Path, preset: Path) -> None:
    with (
        against.started(ROOT, preset, tmp_path / "nothing", threads=1) as worker,
        pytest.raises(ValueError, match="training does not run there"),
    ):
        against.turn(worker, "training")


def test_the_files_of_a_commit_are_laid_out_and_cleared_away() -> None:
    inside = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True).returncode
    if inside:
        pytest.skip("no clone")
    with checkout("HEAD") as tree:
        assert (tree / "lm" / "train.py").is_file()
    assert not tree.exists()
    with pytest.raises(ValueError, match="there is no commit nonsense"), checkout("nonsense"):
        pass


def test_logs_are_compared_to_the_bit_but_for_times() -> None:
    old = [{"step": 1, "loss": 0.1, "seconds": 3.0}, {"step": 2, "loss": 0.1}]
    new = [dict(record) for record in old]
    new[0]["seconds"] = 4.0
    assert same.difference(old, new) is None
    new[1]["loss"] = 0.1 + 2**-55
    assert same.difference(old, new) == (
        "step 2 differs: loss: 0.1 before, 0.10000000000000003 now"
    )
    assert same.difference(old, old[:1]) == "2 records before, 1 now"
    assert same.difference([{"step": 1}], [{"step": 1, "norm": 2.0}]) == (
        "step 1 differs: norm: None before, 2.0 now"
    )
