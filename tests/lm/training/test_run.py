"""What a training says and refuses before its first step."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

from lm.runs import checkpoints
from lm.runs.run_config import RunConfig
from tests.runs import train_here, with_training


def test_what_begins_is_said_before_the_first_step(
    run_config: RunConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = with_training(run_config, steps=1, lanes=4, unroll=2)
    assert train_here(config, tmp_path) == 0
    line = next(line for line in capfd.readouterr().err.splitlines() if "parameters" in line)
    weights = load_file(max(checkpoints.listed(tmp_path).values()) / checkpoints.WEIGHTS)
    assert line.startswith(f"{sum(w.numel() for w in weights.values()):,} parameters")
    assert line.endswith(f"float32, cpu (1 thread), {4 * 2 * config.model.segment:,} tokens a step")


def test_more_threads_than_cores_are_refused_before_anything_is_written(
    run_config: RunConfig, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"training\.threads must be from 1 to the \d+ cores"):
        train_here(with_training(run_config, steps=1, threads=10**6), tmp_path / "run")
    assert not (tmp_path / "run").exists()
