"""Runs that are killed again and again end like one that never was, bit for bit."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lm.runs.run_config import RunConfig
from tests.killing import POINTERS, POINTS
from tests.processes import assert_same_end, write_config

PATIENCE_S = 60.0
"""Within which the other ranks end when one has died."""


def killing(config: Path, run: Path, ranks: int, kills: int) -> tuple[list[dict[str, Any]], str]:
    """Kill a run some times and let it end; returns the kills, and what the runs said."""
    command = [sys.executable, "-m", "tests.killing", str(config), str(run), str(ranks), str(kills)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    # DeepSpeed writes to the standard output too.
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    *killed, end = map(json.loads, lines)
    assert end["ends"] == [0] * ranks, result.stderr
    return killed, result.stderr


def assert_kills_change_nothing(
    config: RunConfig, folder: Path, kills: int, ranks: int, **changes: Any
) -> None:
    """Weights, optimiser, memory, random state and records after the last step."""
    steps = 3 * kills + 20
    training = replace(
        config.training, steps=steps, save_every=1, validate_every=steps // 2, **changes
    )
    path = write_config(replace(config, training=training), folder)
    killing(path, folder / "whole", ranks, kills=0)
    killed, said = killing(path, folder / "killed", ranks, kills)
    assert {kill["point"] for kill in killed} == set(POINTS) and len(killed) == kills
    if kills >= 60:
        assert {kill["pointer"] for kill in killed} == set(POINTERS)
    for kill in killed:
        ends = kill["ends"]
        assert ends.pop(kill["rank"]) == -signal.SIGKILL, kill
        assert ends == [1] * (ranks - 1) and kill["seconds"] < PATIENCE_S, kill
    assert said.count("lost contact with another rank") == kills * (ranks - 1)
    assert_same_end(folder / "whole", folder / "killed")


def test_a_run_killed_at_every_point_resumes_bit_for_bit(
    run_config: RunConfig, tmp_path: Path
) -> None:
    assert_kills_change_nothing(run_config, tmp_path, kills=len(POINTS), ranks=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_sixty_times_resumes_bit_for_bit(
    run_config: RunConfig, tmp_path: Path
) -> None:
    assert_kills_change_nothing(run_config, tmp_path, kills=60, ranks=1)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("zero", [0, 2, 3])
def test_either_rank_of_two_is_killed_and_the_run_resumes_bit_for_bit(
    run_config: RunConfig, tmp_path: Path, zero: int
) -> None:
    assert_kills_change_nothing(run_config, tmp_path, kills=22, ranks=2, zero=zero)
