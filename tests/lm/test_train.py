"""The training program as users start it: alone, killed, on two ranks, with mistakes."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lm.runs.checkpoints import read_state
from lm.runs.run_config import OptimConfig, RunConfig
from lm.training.optim import multiplies_bfloat16
from lm.training.stopping import STOPPED
from tests.processes import (
    assert_close_records,
    ends,
    finish,
    kill_after,
    records,
    start,
    train,
    wait_for,
    write_config,
)

MUON = OptimConfig(name="muon", muon_lr=3e-3, lr=3e-3, warmup=3)


@pytest.mark.dist
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("zero", "optim"),
    [
        (2, None),
        pytest.param(1, None, marks=pytest.mark.slow),
        pytest.param(3, None, marks=pytest.mark.slow),
        pytest.param(0, MUON, marks=pytest.mark.slow),
    ],
    ids=["ZeRO 2", "ZeRO 1", "ZeRO 3", "Muon"],
)
def test_signals_deaths_and_other_numbers_of_ranks_lose_nothing(
    run_config: RunConfig, tmp_path: Path, zero: int, optim: OptimConfig | None
) -> None:
    """Two ranks, stopped; one rank, killed; two ranks, of which one dies; two ranks.

    Losses are those of one rank to rounding, and every lane stands at the same token.
    """
    model = replace(run_config.model, dropout=0.0)
    training = replace(
        run_config.training,
        steps=60,
        save_every=2,
        validate_every=50,
        zero=zero,  # type: ignore[arg-type]
    )
    config = replace(run_config, model=model, training=training, optim=optim or run_config.optim)
    path = write_config(config, tmp_path)
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert ends(start(train(path, whole), 1))[0][0] == 0
    command = train(path, run)
    stopped = start(command, 2)
    wait_for(5, run, stopped[0])
    stopped[1].send_signal(signal.SIGUSR1)
    assert [status for status, _ in ends(stopped)] == [STOPPED] * 2
    kill_after(20, 0.0, command, run, ranks=1)
    kill_after(30, 0.0, command, run, ranks=2)
    assert [status for status, _ in ends(start(command, 2))] == [0, 0]
    # Muon's products are rounded to eight bits where processors have instructions for that.
    coarse = optim is MUON and multiplies_bfloat16()
    assert_close_records(records(whole), records(run), rel=1e-2 if coarse else 1e-3)
    states = [read_state(folder / "checkpoints" / "step-00000060") for folder in (whole, run)]
    assert states[0].lanes == states[1].lanes
    assert (states[0].ranks, states[1].ranks) == (1, 2)


@pytest.mark.dist
@pytest.mark.parametrize(
    "launcher", ["torchrun", pytest.param("deepspeed", marks=pytest.mark.slow)]
)
def test_two_ranks_train_as_one(
    run_config: RunConfig, tmp_path: Path, launcher: str, free_port: int
) -> None:
    """Same losses to rounding, same log, and one rank can take the run over."""
    config = replace(run_config, model=replace(run_config.model, dropout=0.0))
    path = write_config(config, tmp_path)
    finish(train(path, tmp_path / "one"))
    scripts = Path(sys.executable).parent
    if launcher == "torchrun":
        begin = [str(scripts / "torchrun"), "--nproc_per_node=2", f"--master_port={free_port}"]
        # Without "--" torchrun takes --run for a part of its own --run-path.
        begin += ["-m", "--", "lm.train"]
    else:
        begin = [str(scripts / "deepspeed"), "--num_accelerators=2", f"--master_port={free_port}"]
        begin += ["--module", "lm.train"]
    two = [*begin, *train(path, tmp_path / "two")[3:]]
    environment = os.environ | {"PATH": f"{scripts}:{os.environ['PATH']}"}
    result = subprocess.run(two, capture_output=True, text=True, timeout=300, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert_close_records(records(tmp_path / "one"), records(tmp_path / "two"))
    final = tmp_path / "two" / "checkpoints" / "step-00000012"
    assert (final / "rank-1.safetensors").is_file()
    state = json.loads((final / "state.json").read_text())
    assert state["ranks"] == 2


@pytest.mark.dist
def test_two_ranks_are_one_in_float64(run_config: RunConfig, tmp_path: Path) -> None:
    """Losses, norms and weights to float64's rounding, although lanes of a rank count differently.

    Documents end in other places on other lanes, so the ranks do not read the same number of tokens
    and of compressed slots; lanes are read in parts and gradients accumulate.
    """
    model = replace(run_config.model, dropout=0.0)
    training = replace(
        run_config.training,
        order="documents",
        reset_documents=True,
        micro_batches=2,
        accumulate=((0, 1), (3, 2)),
    )
    path = write_config(replace(run_config, model=model, training=training), tmp_path)
    results = []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.json"
        command = [sys.executable, "-m", "tests.float64", str(path), str(out)]
        assert [status for status, _ in ends(start(command, ranks))] == [0] * ranks
        results.append(json.loads(out.read_text()))
    one, two = results
    for mine, theirs in zip(one["steps"], two["steps"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-12)
    assert one["weights"] == pytest.approx(two["weights"], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--optim.lrr", "1"], "lr"),
        (["--model.layers", "0"], "model.layers must be at least 1"),
        (["--model.heads", "3"], "multiple of model.heads"),
        (["--data.shards", "nowhere"], "holds no shards"),
        (["--training.minutes", "1"], "either training.steps or training.minutes"),
        (["--config", "second.yaml"], "second.yaml: No such file"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_get_one_sentence_and_leave_nothing(
    run_config: RunConfig, tmp_path: Path, options: list[str], sentence: str
) -> None:
    path = write_config(run_config, tmp_path)
    command = train(path, tmp_path / "run", *options)
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert sentence in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_things_in_it_is_refused(run_config: RunConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "thesis.txt").write_text("do not touch")
    result = subprocess.run(
        train(write_config(run_config, tmp_path), run), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2 and "thesis.txt" in result.stderr
    assert [p.name for p in run.iterdir()] == ["thesis.txt"]


def test_checkpoints_without_their_config_are_not_touched(
    run_config: RunConfig, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    newest = run / "checkpoints" / "step-00000003"
    newest.mkdir(parents=True)
    (newest / "state.json").write_text("{}")
    (run / "checkpoints" / "latest").write_text(newest.name)
    result = subprocess.run(
        train(write_config(run_config, tmp_path), run), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2 and "put it back" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(newest.iterdir()) == [newest / "state.json"]
