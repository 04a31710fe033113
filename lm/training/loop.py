"""The loop around the training step: records, validation, checkpoints and signals."""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from data.progress import Progress
from data.shards import Shards
from lm.model.flops import training_flops
from lm.training.config import RunConfig
from lm.training.dist import World
from lm.training.runlog import MetricsLog, warn
from lm.training.stopping import StopRequest
from lm.training.throughput import Stopwatch, matmul_rate
from lm.training.trainer import Trainer
from lm.training.writer import SCORE, Writer


@dataclass(frozen=True)
class Status:
    """What the ranks agree on between two steps."""

    stop: bool
    """Some rank has been asked to stop."""
    writing: bool
    """Some rank is still writing a checkpoint."""
    failed: bool
    """Some rank could not write its part."""


class Loop:
    """Trains to the last step, with records, validation and checkpoints on the way."""

    def __init__(self, trainer: Trainer, run: Path) -> None:
        assert trainer.config.training.steps is not None
        self.trainer, self.run, self.steps = trainer, run, trainer.config.training.steps
        self.log = MetricsLog(run / "metrics.jsonl")
        self.writer = Writer(run, trainer.world, trainer.config.training)
        self.stop = StopRequest()
        self.watch = Stopwatch()
        model = trainer.model
        self.flops = training_flops(model.config, model.vocabulary, trainer.memory.lanes).total
        self.peak = matmul_rate(trainer.world.device)
        self.sums = {"nats": 0.0, "tokens": 0.0}
        self.score: tuple[int, float] | None = None
        self.saved = trainer.step
        self.lost: int | None = None

    def train(self) -> bool:
        """Run until the last step is done, scored and saved, or a signal stops the run.

        Returns:
            Whether all steps are done; if not, the run is saved and can go on.

        Raises:
            ValueError: the checkpoint at the end could not be written.
        """
        trainer = self.trainer
        with Progress("train", self.steps, "step", enabled=trainer.world.first) as bar:
            bar.update(trainer.step)
            shown: dict[str, str] = {}
            stopped = False
            while trainer.step < self.steps and not stopped:
                record = self.timed_step()
                if self.due(trainer.config.training.log_every, trainer.step):
                    record |= self.summary()
                    shown |= self.shown(record)
                    self.write(record)
                if self.due(trainer.config.training.validate_every, trainer.step):
                    value = trainer.validate()
                    self.score = (trainer.step, value)
                    shown["valid"] = f"{value:.3f}"
                    self.write({"step": trainer.step, SCORE: value})
                stopped = self.tend_checkpoints().stop
                if self.due(trainer.config.training.save_every, trainer.step):
                    self.save()
                bar.update(1, **shown)
        if stopped:
            self.save()
        self.close_checkpoint()
        if self.lost == trainer.step:
            raise ValueError(
                f"the checkpoint of step {trainer.step} could not be written; make room and "
                "start the same command again"
            )
        return trainer.step == self.steps

    def timed_step(self) -> dict[str, float]:
        """One training step, timed and added to the sums since the last record."""
        start = time.perf_counter()
        watch = self.due(self.trainer.config.training.log_every, self.trainer.step + 1)
        result = self.trainer.train_step(self.steps, watch)
        self.watch.add(time.perf_counter() - start, int(result["tokens"]))
        for name in self.sums:
            self.sums[name] += result.pop(name)
        return {"step": self.trainer.step, **result}

    def summary(self) -> dict[str, float]:
        """Loss in nats per token and speed since the last record."""
        nats, tokens = self.sums["nats"], self.sums["tokens"]
        self.sums = dict.fromkeys(self.sums, 0.0)
        rate = self.watch.rate()
        # Each rank was measured with its own threads, so the ranks' peak is their number times it.
        mfu = rate * self.flops / (self.peak * self.trainer.world.size)
        speed = {"tokens_per_second": rate, "mfu": mfu, "seconds": self.watch.total_seconds}
        return speed if tokens == 0 else {"loss": nats / tokens, **speed}

    def shown(self, record: dict[str, float]) -> dict[str, str]:
        """What the progress line says of a record."""
        shown = {"tok/s": f"{record['tokens_per_second']:,.0f}", "mfu": f"{record['mfu']:.0%}"}
        if "loss" in record:
            shown["bits/token"] = f"{record['loss'] / math.log(2):.3f}"
        if self.trainer.world.device.type == "cuda":
            shown["memory"] = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
        return shown

    def due(self, every: int, step: int) -> bool:
        """Whether something is done after `step` steps; everything is after the last."""
        return step % every == 0 or step == self.steps

    def write(self, record: dict[str, float]) -> None:
        """Append to metrics.jsonl."""
        if self.trainer.world.first:
            self.log.write(record)

    def status(self) -> Status:
        """What the ranks agree on now."""
        here = (self.stop.signal is not None, self.writer.busy, self.writer.error is not None)
        return Status(*map(bool, self.trainer.world.totals(list(here))))

    def tend_checkpoints(self) -> Status:
        """Publish the checkpoint that is being written if all ranks are through with it."""
        status = self.status()
        if self.writer.snapshot is not None and not status.writing:
            step = self.writer.snapshot.step
            if self.writer.finish(status.failed) is None:
                self.lost = step
            if self.writer.error is not None:
                warn(f"the checkpoint of step {step} was not written ({self.writer.error})")
        return status

    def save(self) -> None:
        """Begin to write a checkpoint of this step, after the one before is through."""
        if self.saved == self.trainer.step:
            return
        self.close_checkpoint()
        snapshot = self.trainer.snapshot()
        if self.score is not None and self.score[0] == snapshot.step:
            snapshot.state[SCORE] = self.score[1]
        self.saved = snapshot.step
        self.writer.start(snapshot)

    def close_checkpoint(self) -> None:
        """Wait for the checkpoint that is being written."""
        if self.writer.snapshot is not None:
            self.writer.wait()
            self.tend_checkpoints()


def measured_steps(config: RunConfig, shards: Shards, world: World, trial: int = 12) -> int:
    """How many steps fit in training.minutes, by trying some with a trainer that is thrown away."""
    assert config.training.minutes is not None
    trainer = Trainer(config, shards, world)
    seconds = []
    for _ in range(trial):
        start = time.perf_counter()
        trainer.train_step(trial)
        seconds.append(time.perf_counter() - start)
    # The first steps warm caches up. The slowest rank decides, so that all agree.
    typical = sorted(seconds[2:])[len(seconds[2:]) // 2]
    return max(1, int(config.training.minutes * 60 / max(world.gather(typical))))
