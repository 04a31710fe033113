"""Training in a run's folder: all ranks together, from where it was to its end."""

import math
from contextlib import ExitStack
from pathlib import Path

from data.common.say import say
from data.shards import Shards, open_shards
from data.stated import require_stated
from lm.runs.run_config import RunConfig, RunFolder
from lm.runs.runlog import device_name
from lm.threads import Threads, require_cores
from lm.training import dist, meeting
from lm.training.compiling import settled
from lm.training.folder import Start, begin, describe, kept_alone, training_in
from lm.training.learning import require_peft
from lm.training.loop import Loop
from lm.training.origin import find_origin, spoken
from lm.training.stopping import StopRequest
from lm.training.trainer import Trainer


def train(config: RunConfig, at: RunFolder, stop: StopRequest) -> None:
    """Begin a run or go on with it, to its end or until `stop`.

    Raises:
        SystemExit: stopped; the status is that of lm.training.stopping.
    """
    require_cores(config.training.threads, "training.threads")
    require_peft(config.training)
    config = settled(config)
    shards = open_shards(config.data.shards)
    require_stated(config.data, shards)
    for name in ("train", "validation"):
        # Before ranks wait for each other: what is large may take minutes, once on a machine.
        shards.split(name).open_tokens()
    run, world = at.run, _joined(config, shards, at.run)
    stop.joined = True
    with dist.ending_together(world), ExitStack() as stack:
        folder = kept_alone(run, training_in(run))
        dist.on_first(world, lambda: stack.enter_context(folder))
        begun = dist.from_first(world, lambda: begin(at, config))
        trainer = _trainer(begun, at, shards, world)
        if said := begun.spoken(run):
            _say(world, said)
        dist.on_first(world, lambda: describe(run, trainer, begun))
        loop = Loop(trainer, run, stop)
        _say(world, _sizes(trainer, loop.threads))
        finished = loop.train()
    dist.leave(world)
    if not finished:
        stop.end(trainer.step, world.first)


def _joined(config: RunConfig, shards: Shards, run: Path) -> dist.World:
    """All ranks, which are as many as they must be and about to do the same.

    Raises:
        ValueError: they are not.
    """
    ranks = config.training.ranks
    world = dist.join(
        config.training.timeout,
        lambda store, place: meeting.agree(store, place, meeting.facts_of(config, shards), run),
    )
    if ranks not in (None, world.size):
        world.refuse(
            f"training.ranks is {ranks}, but there are {world.size}: see that the launcher finds "
            "all machines and processes"
        )
    return world


def _trainer(begun: Start, at: RunFolder, shards: Shards, world: dist.World) -> Trainer:
    """A new trainer, or one that continues from a checkpoint, with what there is to say of it."""
    config, training = begun.config, begun.config.training
    if world.size == 1 and training.zero and not training.offload:
        _say(world, f"training.zero {training.zero} divides among ranks; one alone is faster at 0")
    origin = None
    if begun.checkpoint is None:
        origin = dist.from_first(world, lambda: find_origin(at, config, shards.vocabulary.hash))
    trainer = Trainer(config, shards, world, begun.checkpoint, origin)
    if trainer.origin is not None:
        _say(world, spoken(trainer.origin))
    if routes := trainer.sparsity.spoken():
        _say(world, routes)
    return trainer


def _sizes(trainer: Trainer, threads: Threads) -> str:
    """What begins, in a line; the first step may take a while."""
    training, device = trainer.config.training, trainer.world.device
    model, ranks = trainer.model, trainer.world.size
    segments = training.lanes * training.unroll * trainer.accumulated
    tokens = segments * model.config.segment
    where = device_name() if device.type == "cuda" else f"cpu ({threads.spoken()})"
    shapes = trainer.engine.shapes()
    size = sum(map(math.prod, shapes.values()))
    learning = sum(math.prod(shapes[name]) for name in trainer.engine.learning)
    some = f" ({learning:,} learn)" if learning < size else ""
    return (
        f"{size:,} parameters{some}, vocabulary {model.vocabulary:,}, {training.precision}, {where}"
        f"{f', {ranks} ranks' if ranks > 1 else ''}, {tokens:,} tokens a step"
    )


def _say(world: dist.World, line: str) -> None:
    if world.first:
        say(line)
