"""Numbers of another commit: whether a preset's run logs the same, to the last bit.

Both checkouts train by `python -m lm.train` on the same shards. All that metrics.jsonl says is
compared but times, which no two runs have alike. A preset is read from the other commit, so that
both run what it ran.
"""

import json as json_format
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from data.common.command import find_preset
from data.common.say import say
from data.common.schema import Size
from tools.benchmarks.against import prepared
from tools.commits import ROOT, checkout, environment

MACHINE = {"seconds", "tokens_per_second", "mfu", "memory_bytes"}
"""Fields that depend on how fast and full the machine was."""
Record = dict[str, Any]


def main(
    commit: str,
    preset: Path = Path("quickstart"),
    shards: Path | None = None,
    steps: Size = 60,
    options: tuple[str, ...] = (),
) -> None:
    """Train the same run in this tree and at another commit; status 1 if the logs differ.

    Args:
        commit: the other.
        preset: the run; by name, as the other commit has it.
        shards: what both read; by default random bytes, which the other commit prepares.
        steps: length of the run.
        options: more of lm.train for both, such as `--training.lanes=8`.
    """
    with ExitStack() as stack:
        old_tree = stack.enter_context(checkout(commit))
        file = find_preset(preset, old_tree / "configs").resolve()
        folder = Path(stack.enter_context(TemporaryDirectory()))
        place = prepared(old_tree, folder) if shards is None else shards.resolve()
        # Random letters in bytes, whatever the preset's text is.
        made = ("corpus=text", "vocabulary=bytes", "vocabulary_size=null", "vocabulary_sample=null")
        data = [] if shards is not None else [f"--data.{option}" for option in made]
        length = ["--training.minutes=null", f"--training.steps={steps}", "--training.log_every=1"]
        given = [f"--config={file}", *data, f"--data.shards={place}", *length, *options]
        logs = {}
        for name, tree in {"old": old_tree, "new": ROOT}.items():
            say(f"train: {name}")
            logs[name] = trained(tree, folder / name, given)
    differing = difference(logs["old"], logs["new"])
    if differing is not None:
        print(differing)
        raise SystemExit(1)
    print(f"the same to the bit: {len(logs['new'])} records of {steps} steps")


def trained(tree: Path, run: Path, options: Sequence[str]) -> list[Record]:
    """The log of a run of a checkout.

    Raises:
        ValueError: it has failed, and has said why.
    """
    command = [sys.executable, "-m", "lm.train", f"--run={run}", *options]
    # What it says of itself belongs to stderr here.
    done = subprocess.run(
        command, cwd=tree, env=environment(tree), stdout=sys.stderr.fileno(), check=False
    )
    if done.returncode:
        raise ValueError("the run failed, for the reason above")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json_format.loads(line) for line in lines]


def difference(old: list[Record], new: list[Record]) -> str | None:
    """The first step at which two logs differ, in a sentence; None if there is none."""
    for before, after in zip(old, new, strict=False):
        names = [n for n in {**before, **after} if n not in MACHINE]
        names = [n for n in names if repr(before.get(n)) != repr(after.get(n))]
        if names:
            each = "; ".join(f"{n}: {before.get(n)} before, {after.get(n)} now" for n in names)
            return f"step {after.get('step')} differs: {each}"
    if len(old) != len(new):
        return f"{len(old)} records before, {len(new)} now"
    return None
