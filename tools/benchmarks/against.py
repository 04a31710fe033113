"""Speed against another commit: a training step, a scored segment and a token, in turns.

Each of the two checkouts has a process that lives on (tools/worker.py); they take turns in the
order old, new, new, old. Both read the same shards, and have the shape of one preset. Against HEAD
it shows what the machine's own unrest makes of it.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

import torch

from data.common.command import find_preset
from data.common.outputs import check_output
from data.common.say import say
from data.common.schema import Size
from tools.benchmarks.building import random_text
from tools.benchmarks.timing import machine, report
from tools.commits import ROOT, checkout, environment

WORKER = ROOT / "tools" / "worker.py"
PARTS = {"training": ("step", 10), "scoring": ("segment", 10), "generation": ("token", 100)}
"""What one of each is called, and how many make a turn."""
WARMUP = 2


def main(
    commit: str,
    preset: Path = Path("quickstart"),
    shards: Path | None = None,
    rounds: Size = 12,
    threads: Size = 1,
    json: Path | None = None,
) -> None:
    """Time this tree against another commit, on the CPU.

    Args:
        commit: the other.
        preset: the run whose model, lanes and optimiser both have.
        shards: what both read; by default random bytes, which the other commit prepares.
        rounds: pairs of turns of which medians are made.
        threads: that each computes with; with one, seconds are those of its core.
        json: file for the result.
    """
    check_output(json)
    file = find_preset(preset).resolve()
    with ExitStack() as stack:
        old_tree = stack.enter_context(checkout(commit))
        folder = Path(stack.enter_context(TemporaryDirectory()))
        place = prepared(old_tree, folder) if shards is None else shards.resolve()
        trees = {"old": old_tree, "new": ROOT}
        workers = {
            name: stack.enter_context(started(tree, file, place, threads))
            for name, tree in trees.items()
        }
        result = {part: compared(workers, part, rounds) for part in PARTS}
    facts = machine(torch.device("cpu")) | {"threads": threads}
    report({"commit": commit, "rounds": rounds} | result | facts, json)


@contextmanager
def started(
    tree: Path, preset: Path, shards: Path, threads: int
) -> Iterator["subprocess.Popen[str]"]:
    """A worker in a checkout, ended afterwards."""
    worker = subprocess.Popen(
        [sys.executable, "-P", WORKER, preset, shards],
        cwd=tree,
        env=environment(tree, threads),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with worker:
        try:
            yield worker
        finally:
            worker.kill()


def turn(worker: "subprocess.Popen[str]", part: str) -> float:
    """Seconds of a turn.

    Raises:
        ValueError: the worker has ended, and has said why.
    """
    assert worker.stdin is not None
    assert worker.stdout is not None
    answer = ""
    try:
        worker.stdin.write(f"{part} {PARTS[part][1]}\n")
        worker.stdin.flush()
        answer = worker.stdout.readline()
    except BrokenPipeError:
        pass
    if not answer:
        raise ValueError(f"{part} does not run there, for the reason above; give another commit")
    return float(answer)


def compared(workers: dict[str, "subprocess.Popen[str]"], part: str, rounds: int) -> dict[str, Any]:
    """Median times of both, and the old one's as a multiple of the new one's: above 1 the new one
    is faster. Beside the median ratio stand the quartiles of the ratios of single rounds.
    """
    say(part)
    taken: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(WARMUP + rounds):
        order = list(workers) if number % 2 == 0 else list(workers)[::-1]
        for name in order:
            taken[name].append(turn(workers[name], part))
    timed = {name: seconds[WARMUP:] for name, seconds in taken.items()}
    ratios = [old / new for old, new in zip(timed["old"], timed["new"], strict=True)]
    low, _, high = quantiles(ratios, n=4) if rounds > 1 else ratios * 3
    name, times = PARTS[part]
    milliseconds = {side: 1e3 * median(seconds) / times for side, seconds in timed.items()}
    return {
        f"milliseconds_a_{name}": {side: round(value, 3) for side, value in milliseconds.items()},
        "old_over_new": round(median(ratios), 4),
        "quartiles": [round(low, 4), round(high, 4)],
    }


def prepared(tree: Path, folder: Path) -> Path:
    """Byte shards of random letters, made by the program of a checkout, the older of two: what it
    writes both can read.
    """
    random_text(folder / "text")
    shards = folder / "shards"
    command = [sys.executable, "-m", "data.prepare", "--corpus=text", f"--source={folder}/text"]
    subprocess.run(
        [*command, f"--shards={shards}"],
        cwd=tree,
        env=environment(tree),
        stdout=sys.stderr.fileno(),
        check=True,
    )
    return shards
