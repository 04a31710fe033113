"""Ranks under torchrun and deepspeed: what ends the launcher ends them, saved, and nobody stays."""

import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from lm.runs import checkpoints
from lm.runs.run_config import RunConfig
from lm.training.stopping import LAUNCHERS, STOPPED, program_of
from tests.processes import wait_for, write_config
from tests.tools.test_launch import launch
from tools import ranks


@pytest.mark.parametrize("argv", [[], ["mpirun", "-n", "2"], ["--helpful"]], ids=str)
def test_other_launchers_are_refused(argv: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert ranks.main(argv) == 2
    assert capfd.readouterr().err.startswith("ranks: error: the first word must be")


def test_it_says_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert ranks.main(["--help"]) == 0
    assert "python -m tools.ranks torchrun" in capsys.readouterr().out


@pytest.mark.parametrize("host", ["no-such-machine.invalid", "a" * 300, "a..b"])
@pytest.mark.parametrize("port", ["", ":29500"])
def test_a_first_node_without_address_is_refused(
    host: str, port: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """torchrun would wait for it."""
    assert ranks.main(["torchrun", f"--rdzv_endpoint={host}{port}", "-m", "x"]) == 2
    assert "is the name of no machine" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "program"),
    [
        (["/a/bin/python", "/a/bin/torchrun", "--nnodes=1"], "torchrun"),
        (["python3.11", "-u", "-m", "deepspeed.launcher.launch"], "deepspeed.launcher.launch"),
        (["python", "-m", "lm.train", "--run", "runs/torchrun deepspeed"], "lm.train"),
        (["sh", "-c", "torchrun -m lm.train"], ""),
        (["python", "-m"], ""),
        (["python"], ""),
        ([], ""),
    ],
    ids=str,
)
def test_programs_are_known_by_what_runs_not_by_what_it_is_given(
    words: list[str], program: str
) -> None:
    assert program_of(words) == program


def ranks_of(run: Path) -> list[psutil.Process]:
    """Processes that train in a folder, under whatever launcher."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if program_of(words) in ("lm.train", *LAUNCHERS) and str(run) in words:
            found.append(process)
    return found


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("torchrun", signal.SIGTERM),
        ("torchrun", signal.SIGINT),
        ("torchrun", signal.SIGKILL),
        ("deepspeed", signal.SIGHUP),
        ("deepspeed", signal.SIGKILL),
    ],
)
def test_what_ends_the_launcher_saves_and_leaves_nobody_behind(
    launcher: str, number: signal.Signals, run_config: RunConfig, tmp_path: Path
) -> None:
    training = replace(run_config.training, steps=3000, save_every=3000, validate_every=3000)
    path, run = write_config(replace(run_config, training=training), tmp_path), tmp_path / "run"
    command = [sys.executable, "-m", "tools.launch", "--preset", str(path), "--run", str(run)]
    command += ["--launcher", launcher, "--processes", "2"]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(5, run, process)
        process.send_signal(number)
        status = process.wait(timeout=120)
    assert status == (-signal.SIGKILL if number == signal.SIGKILL else STOPPED)
    deadline = time.monotonic() + 60
    while ranks_of(run):
        assert time.monotonic() < deadline, ranks_of(run)
        time.sleep(0.2)
    said = (tmp_path / "log").read_text()
    assert len(re.findall(r"stopped by .* at step \d+, saved; the same command", said)) == 1, said
    assert "Traceback" not in said and checkpoints.newest(run) is not None


@pytest.mark.slow
@pytest.mark.dist
def test_a_mistake_and_a_killed_rank_have_their_status(
    run_config: RunConfig, tmp_path: Path
) -> None:
    """torchrun alone would show a traceback for either."""
    path = write_config(run_config, tmp_path)
    wrong = launch(path, tmp_path / "a", "--processes", "2", "--", "--training.lanes", "3")
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr
    assert wrong.stderr.count("train: error: training.lanes must be a multiple") >= 1
    training = replace(run_config.training, steps=3000, validate_every=3000)
    path, run = write_config(replace(run_config, training=training), tmp_path), tmp_path / "b"
    command = [sys.executable, "-m", "tools.launch", "--preset", str(path), "--run", str(run)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, "--processes", "2"], stdout=log, stderr=log)
        wait_for(5, run, process)
        rank = next(each for each in ranks_of(run) if program_of(each.cmdline()) == "lm.train")
        rank.kill()
        assert process.wait(timeout=120) == 1
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said and not ranks_of(run)
    assert "was ended by SIGKILL" in said or "lost contact with another rank" in said, said


@pytest.mark.parametrize(
    ("passed", "to_launcher", "code", "status", "said"),
    [
        ((), False, 0, 0, ""),
        ((signal.SIGINT,), False, 130, 130, ""),
        ((signal.SIGTERM,), False, STOPPED, STOPPED, ""),
        ((signal.SIGTERM,), False, 256 - signal.SIGTERM, STOPPED, ""),
        ((), True, 143, STOPPED, ""),
        ((), False, 2, 2, ""),
        ((), False, 256 - signal.SIGKILL, 1, "a rank was ended by SIGKILL; the same command"),
        ((signal.SIGTERM,), False, 256 - signal.SIGKILL, 1, "a rank was ended by SIGKILL"),
    ],
)
def test_deepspeed_ends_as_its_ranks_did(
    passed: tuple[int, ...],
    to_launcher: bool,
    code: int,
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A second Ctrl-C saves nothing, so it must not be 75, on which a scheduler begins again."""
    started = ranks.Ranks()
    started.passed, started.launcher_stopped = set(passed), to_launcher
    command = [sys.executable, "-c", f"raise SystemExit({code})"]
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda _, **options: popen(command, **options))
    assert ranks.deepspeed([], started) == status
    err = capfd.readouterr().err
    assert said in err and bool(said) == bool(err)
