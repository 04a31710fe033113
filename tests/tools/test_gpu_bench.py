"""The benchmark for GPUs: its sections, and the whole of it at tiny sizes on a CPU."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.benchmarks.sections import Sections

ROOT = Path(__file__).parents[2]


def test_a_failing_part_is_noted_and_the_others_run(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory\nand more")

    sections = Sections(minutes=1.0)
    sections.run("bad", 1, fail)
    sections.run("good", 1, lambda: {"speed": 3})
    sections.run("long", 100, lambda: {"speed": 4})
    assert sections.results == {
        "bad": {"error": "RuntimeError: out of memory"},
        "good": {"speed": 3},
        "long": {"left_out": "no time"},
    }
    assert sections.failed == ["bad"]
    assert "long: left out" in capfd.readouterr().err


def test_a_part_is_broken_off_when_the_time_is_up() -> None:
    def hang() -> None:
        try:
            time.sleep(30)
        except Exception:
            pytest.fail("taken for an error of its own")

    sections = Sections(minutes=0.2 / 60)
    sections.run("hang", 0, hang)
    assert sections.results["hang"]["left_out"].startswith("broken off")
    assert not sections.failed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_of_it_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, "tools/bench.py", "gpu", "--device", "cpu", "--minutes", "25"]
    result = subprocess.run(
        [*command, "--tests", "false", "--json", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    parts = json.loads(out.read_text())
    assert parts["toy"] and parts["ceilings"]["matmul_tflops"] > 0
    for name, values in parts.items():
        if isinstance(values, dict):
            assert not {"error", "left_out"} & {
                key for key, v in values.items() if isinstance(v, str)
            }
            assert name in result.stdout
    for way in ("blocked", "shift", "fused", "rotary"):
        assert parts["attention enwik8-12"][way]["error"] < 1e-4
    assert parts["step enwik8-24 compiled"]["error"] < 1e-4
    assert parts["generation"]["error"] < 1e-4
