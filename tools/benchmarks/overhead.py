"""What our loop and DeepSpeed cost over a bare torch loop, and what a checkpoint costs training.

The budget is 5 % at ZeRO stage 0 on the quick-start model, and no stall but for the snapshot.
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from data.common.command import load_config
from data.common.outputs import check_output
from data.common.schema import Size
from data.options import DataConfig
from data.shards import Shards
from lm.runs.run_config import RunConfig
from lm.training import dist
from lm.training.loop import Loop
from lm.training.optim import build_optimizer
from lm.training.trainer import Trainer
from tools.benchmarks.building import (
    CONFIGS,
    Step,
    losses_of,
    new_model,
    random_shards,
    read_batches,
)
from tools.benchmarks.timing import core_clock, machine, pick_device, report, take_turns

STEPS = 10
"""Steps timed together: as many as between two records of a run."""


def main(
    preset: Path = CONFIGS / "quickstart.yaml",
    rounds: Size = 12,
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Time the training loop against a bare one on the same model and text, in turns.

    Args:
        preset: the run.
        rounds: how often ten steps of each are timed.
        device: cpu, cuda, or auto for the GPU where there is one.
        json: file for the result.
    """
    check_output(json)
    place = pick_device(device)
    with tempfile.TemporaryDirectory() as folder:
        shards = random_shards(Path(folder))
        config = _config(load_config(RunConfig, preset), shards)
        world = dist.join()
        loop = Loop(Trainer(config, shards, world), Path(folder))
        engine = Trainer(config, shards, world)
        actions = {
            "bare": _times(bare_step(config, shards, place)),
            "engine": _times(partial(engine.train_step, loop.length.steps)),
            "loop": _times(partial(_loop_step, loop)),
        }
        taken = take_turns(actions, place, rounds, clock=core_clock(place))
        result = {
            "step_milliseconds": {
                name: round(1e3 * seconds / STEPS, 3) for name, seconds in taken.items()
            },
            "overhead": {
                name: round(taken[name] / taken["bare"] - 1, 4) for name in ("engine", "loop")
            },
            "checkpoint": checkpoint(loop, rounds),
        }
    report(result | machine(place), json)


def _config(config: RunConfig, shards: Shards) -> RunConfig:
    """The preset's run over other text, long, without validation and checkpoints of its own."""
    never = 10**9
    training = replace(
        config.training,
        steps=never,
        minutes=None,
        validate_every=never,
        save_every=never,
        log_every=STEPS,
    )
    return replace(config, data=DataConfig("text", Path(shards.path)), training=training)


def _times(step: Callable[[], object]) -> Callable[[], None]:
    def several() -> None:
        for _ in range(STEPS):
            step()

    return several


def _loop_step(loop: Loop) -> None:
    loop.step()
    loop.tend_checkpoints()


def bare_step(config: RunConfig, shards: Shards, device: torch.device) -> Step:
    """Training a new model by one segment as one would by hand in torch."""
    model = new_model(config.model, shards.vocabulary.size, device)
    batches, optimizer = read_batches(config, shards, device), build_optimizer(model, config.optim)
    return Step(model, losses_of(model, resets=True), batches, optimizer, config.optim.clip)


def checkpoint(loop: Loop, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step alone and while a checkpoint is written, of the snapshot, and until
    the checkpoint is there.
    """
    alone, beside, snapshots, whole = [], [], [], []
    for _ in range(rounds):
        _loop_step(loop)
        start = time.perf_counter()
        _loop_step(loop)
        alone.append(time.perf_counter() - start)
        start = time.perf_counter()
        loop.save()
        snapshots.append(time.perf_counter() - start)
        while loop.writer.snapshot is not None:
            before = time.perf_counter()
            _loop_step(loop)
            beside.append(time.perf_counter() - before)
        whole.append(time.perf_counter() - start)
    times = {"step": alone, "step_while_writing": beside, "snapshot": snapshots, "written": whole}
    return {name: round(1e3 * median(seconds), 2) for name, seconds in times.items()}
