"""Memory that a rank of a training run really takes: `python -m tests.measuring PRESET`.

Prints the bytes that the process has grown by at its largest, over what it is with a tiny run,
which has loaded all code.
"""

import gc
import sys
from dataclasses import replace
from pathlib import Path

import torch

from data.common.command import load_config
from data.shards import open_shards
from lm.runs.run_config import RunConfig
from lm.training import dist
from lm.training.trainer import Trainer


def status(name: str) -> int:
    """A size of this process in bytes, as the kernel knows it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


def main(preset: str) -> None:
    """Train three steps."""
    torch.set_num_threads(1)
    world = dist.join()
    config = load_config(RunConfig, Path(preset))
    shards = open_shards(config.data.shards)
    tiny = replace(config.model, layers=1, width=32, feedforward=32)
    for model in (tiny, config.model):
        gc.collect()
        before = status("VmRSS")
        # Forgets the largest size so far.
        Path("/proc/self/clear_refs").write_text("5")
        trainer = Trainer(replace(config, model=model), shards, world)
        for _ in range(3):
            trainer.train_step(3)
        grown = status("VmHWM") - before
        del trainer
    print(grown, flush=True)
    dist.leave(world)


if __name__ == "__main__":
    main(sys.argv[1])
