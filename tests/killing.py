"""Kills training runs at chosen and at random moments, many a minute.

Before each start what `checkpoints/latest` says is changed at random too, because nothing may hang
on it. Starting Python and importing torch and DeepSpeed takes seconds, so this program does it once
and forks a process for each start of a run: `python -m tests.killing CONFIG RUN RANKS KILLS`. It
prints one JSON line for each start.
"""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm.train
from data.common import command
from lm.runs import runlog
from lm.training import dist, engine, trainer, writer

Function = tuple[Any, str]

EVERY_RANK: dict[str, Function] = {
    "between forward and backward": (trainer.Trainer, "_backward"),
    "before an update": (engine.Engine, "update"),
    "before a snapshot": (trainer.Trainer, "snapshot"),
    "before a file of a checkpoint": (writer, "save_tensors"),
    "before a sync": (os, "fsync"),
    "while continuing": (trainer.Trainer, "_restore"),
}
FIRST_RANK: dict[str, Function] = {
    "before a record": (runlog.MetricsLog, "write"),
    "before the folder's rename": (writer, "publish_folder"),
    "between rename and latest": (writer, "atomic_path"),
    "before an old checkpoint goes": (writer, "remove_folder"),
    "before any rename": (Path, "replace"),
}
POINTS = EVERY_RANK | FIRST_RANK
"""Functions at whose calls a rank is killed."""


@dataclass(frozen=True)
class Kill:
    """When a rank is killed."""

    rank: int
    point: str
    call: int
    """Which call of the point's function."""
    held: bool
    """The rank waits there to be killed; or it goes on, and is killed a little later."""
    delay: float
    """Seconds until the kill."""


def plan(number: int, ranks: int, rng: random.Random) -> Kill:
    """The kill of a start: each point has its turn, held and not."""
    point = list(POINTS)[number % len(POINTS)]
    rank = rng.randrange(ranks) if point in EVERY_RANK else 0
    call = 1 if point == "while continuing" else rng.randint(1, 4)
    return Kill(rank, point, call, rng.random() < 0.5, rng.random() * 0.03)


def trap(kill: Kill, reached: int) -> None:
    """Make this process say through a pipe that it has come to the point of its death."""
    owner, name = POINTS[kill.point]
    function: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def watched(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == kill.call:
            os.write(reached, b".")
            if kill.held:
                time.sleep(60)
        return function(*arguments, **options)

    setattr(owner, name, watched)


def start(argv: list[str], rank: int, ranks: int, port: int, prepare: Callable[[], None]) -> int:
    """Fork a rank of a run; returns its process id."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        prepare()
        command.run(lm.train.main, section="start", argv=argv)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def attempt(argv: list[str], ranks: int, kill: Kill | None) -> dict[str, Any]:
    """Start a run and perhaps kill a rank; returns how each rank ended, and how long that took."""
    reading, writing = os.pipe()
    port = dist.free_port()

    def prepare(rank: int) -> None:
        os.close(reading)
        if kill is not None and rank == kill.rank:
            trap(kill, writing)
        else:
            os.close(writing)

    children = [start(argv, n, ranks, port, lambda n=n: prepare(n)) for n in range(ranks)]
    os.close(writing)
    # Nothing is read if the run ended before.
    if kill is not None and os.read(reading, 1):
        time.sleep(kill.delay)
        os.kill(children[kill.rank], signal.SIGKILL)
    os.close(reading)
    since = time.monotonic()
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return {"ends": ends, "seconds": time.monotonic() - since}


POINTERS: dict[str, Callable[[bytes], bytes | None]] = {
    "as it is": lambda text: text,
    "removed": lambda _: None,
    "garbage": lambda _: b"\x00\xff garbage\n",
    "empty": lambda _: b"",
    "not there": lambda _: b"step-99999999\n",
    "the first": lambda _: b"step-00000001\n",
}
"""What becomes of what `latest` says."""


def mislead(run: Path, rng: random.Random) -> str:
    """Change `latest`, if it is there; returns how."""
    latest, how = run / "checkpoints" / "latest", rng.choice(list(POINTERS))
    if latest.exists():
        text = POINTERS[how](latest.read_bytes())
        latest.unlink()
        if text is not None:
            latest.write_bytes(text)
    return how


def warm() -> None:
    """Import what each start would."""
    import deepspeed
    import torch

    torch.set_num_threads(1)
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True)
    assert deepspeed.comm and torch._dynamo


def main(config: str, run: str, ranks: int, kills: int) -> None:
    """Kill a run some times, then let it end."""
    warm()
    argv, rng = ["--config", config, "--run", run], random.Random(kills)
    for number in range(kills):
        kill = plan(number, ranks, rng)
        pointer = {"pointer": mislead(Path(run), rng)}
        print(json.dumps(vars(kill) | pointer | attempt(argv, ranks, kill)), flush=True)
    mislead(Path(run), rng)
    print(json.dumps(attempt(argv, ranks, None)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
