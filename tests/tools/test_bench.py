import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools import bench

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
    assert json.loads((tmp_path / "step.json").read_text()) == result
