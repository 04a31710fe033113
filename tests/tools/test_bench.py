import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.common.integrity import read_sealed
from data.options import DataConfig
from lm.model.model_config import ModelConfig
from lm.runs.run_config import OptimConfig, RunConfig, TrainingConfig
from tools import bench
from tools.benchmarks import (
    backends,
    growth,
    integrity_speed,
    keys,
    reading,
    scoring_speed,
    sparse,
)

ROOT = Path(__file__).parents[2]


def test_benchmarks_are_listed_with_a_sentence(capsys):
    bench.main(["--help"])
    text = capsys.readouterr().out
    for name, sentence in bench.benchmarks().items():
        assert sentence and f"{name} " in text and sentence in text


def test_an_unknown_benchmark_names_the_nearest(capsys):
    with pytest.raises(SystemExit) as stopped:
        bench.main(["stepp"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "bench: error: unknown benchmark stepp; did you mean step?\n"
    )


def test_the_script_runs_a_benchmark_and_writes_its_result(tmp_path):
    shape = "--model.layers 1 --model.width 8 --model.heads 2 --model.segment 4 --model.memory 4"
    options = f"{shape} --lanes 2 --rounds 1 --device cpu --json {tmp_path / 'step.json'}"
    command = [sys.executable, "tools/bench.py", "step", *options.split()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["tokens_per_second"]["this model"] > 0 and 0 < result["mfu"] < 2
    assert read_sealed(tmp_path / "step.json", "") == result


TINY = ModelConfig(layers=1, width=8, heads=2, feedforward=8, segment=4, memory=4, compressed=2)


def test_growth_is_measured_and_drawn(tmp_path, capsys):
    figure, file = tmp_path / "growth.png", tmp_path / "growth.json"
    growth.main(TINY, 1, [0, 2, 4], rounds=1, device="cpu", json=file, out=figure)
    points = json.loads(file.read_text())["points"]
    assert figure.stat().st_size > 0 and json.loads(capsys.readouterr().out)["points"] == points
    state = {(p["kind"], p["history"]): p["state_mib_per_lane"] for p in points}
    assert state["memory", 20] > state["compressed", 20] > state["compressed", 4]
    assert all(point["saved_mib_per_lane"] > 0 < point["step_milliseconds"] for point in points)


def test_kept_keys_are_timed_beside_what_is_counted(monkeypatch, capsys):
    monkeypatch.setattr(keys, "LENGTHS", ((4, 4, 2),))
    keys.main(TINY, 2, rounds=1, device="cpu")
    (row,) = json.loads(capsys.readouterr().out)["lengths"]
    assert row["tokens_per_second"] > 0 and 0 < row["flops_saved"] < 1


def test_scoring_is_timed_with_keys_kept_and_without(monkeypatch, capsys):
    monkeypatch.setattr(scoring_speed, "TINY", TINY)
    scoring_speed.main(TINY, 2, rounds=1, megabytes=0.01, device="cpu")
    result = json.loads(capsys.readouterr().out)
    assert all(result["tokens_per_second"][name] > 0 for name in ("kept", "projected"))
    assert 0.008 < result["large_split"]["megabytes"] < 0.01


def test_scoring_is_timed_in_turns_with_training(monkeypatch, capsys):
    data = DataConfig("pystdlib", Path("unread"), vocabulary="sentencepiece", vocabulary_size=300)
    training = TrainingConfig(steps=1, lanes=2)
    config = RunConfig(data, TINY, OptimConfig(), training)
    monkeypatch.setattr(reading, "load_config", lambda *_: config)
    monkeypatch.setattr(reading, "BUDGET", 1e9)
    reading.main(rounds=1, lanes=4)
    result = json.loads(capsys.readouterr().out)
    first, middle, last = result["scoring_over_training"]
    assert 0 < first <= middle <= last and result["first_step_at"] > 0
    assert not result["within_budgets"]


def test_memory_of_every_form_of_a_sparse_model_is_counted(monkeypatch, capsys):
    monkeypatch.setattr(sparse, "WIDE", TINY)
    lines = {}
    for form in ("dense", "masked 0.2/0.5", "sparse 0.2/0.5"):
        sparse.main(form=form)
        lines[form] = json.loads(capsys.readouterr().out)
    # Weight, gradient and two moments of four bytes, and two masks of one.
    assert [line["device"] for line in lines.values()][:2] == [16.0, 18.0]
    assert lines["sparse 0.2/0.5"]["device"] < 16 and lines["sparse 0.2/0.5"]["host"] > 4


def test_every_backend_is_timed_beside_the_plain_way():
    result = backends.compared(TINY, 2, torch.device("cpu"), rounds=1)
    assert result.keys() == {"fused", "rotary", "blocked"}
    assert all(value > 0 for each in result.values() for value in each.values())


def test_what_hashes_cost_is_measured(tmp_path, capsys):
    integrity_speed.main(1, rounds=1, folder=tmp_path, json=tmp_path / "integrity.json")
    result = json.loads(capsys.readouterr().out)
    assert read_sealed(tmp_path / "integrity.json", "") == result
    assert {"hash", "write", "write with hashes"} < result["gigabytes_per_second"].keys()
    assert result["open_seconds"].keys() == {"first", "again"}
    assert [path.name for path in tmp_path.iterdir()] == ["integrity.json"]
