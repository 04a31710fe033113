"""The loop around the training step: records, validation, checkpoints and signals."""

from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from data.common.progress import Progress
from data.common.say import warn
from lm.inference.inference_config import BITS
from lm.runs.checkpoints import Owed
from lm.runs.runlog import MetricsLog, trained_seconds
from lm.threads import Threads, keep_blocks
from lm.training.dist import on_first
from lm.training.gradients import judge_skipped
from lm.training.loggers import ProfileWindow, open_sinks
from lm.training.meter import Meter, in_unit
from lm.training.observer import Observer
from lm.training.stopping import StopAskedError, StopRequest
from lm.training.trainer import Trainer
from lm.training.writer import Writer


@dataclass(frozen=True)
class Status:
    """What the ranks agree on between two steps."""

    stop: bool
    """Some rank has been asked to stop."""
    writing: bool
    """Some rank is still writing a checkpoint."""
    failed: bool
    """Some rank could not write its part."""
    seconds: float
    """How long the run has trained."""


class Loop:
    """Trains to the last step, with records, validation and checkpoints on the way."""

    def __init__(self, trainer: Trainer, run: Path, stop: StopRequest | None = None) -> None:
        training, report = trainer.config.training, trainer.config.report
        self.trainer, self.run = trainer, run
        self.length = trainer.length
        self.stop = stop or StopRequest()
        # What other ranks of this machine and a GPU need is not found by timing one rank.
        alone = trainer.world.size == 1 and trainer.world.device.type == "cpu"
        if trainer.world.device.type == "cpu":
            keep_blocks()
        timed = alone and training.minutes is not None
        self.threads = Threads(training.threads, fixed=not timed)
        self.observer = Observer(trainer, self.give_way)
        state = trainer.restored
        self.owed = Owed() if state is None else state.owed
        if self.owed.validation is not None and trainer.world.first:
            # A run that was killed after it had paid pays again.
            scored = f"validation_{BITS[not self.observer.split.exact]}"
            MetricsLog(run / "metrics.jsonl").cut(trainer.step, without=scored)
        made = on_first(trainer.world, lambda: open_sinks(run, trainer.config, trainer.step))
        self.sinks = made or []
        self.writer = Writer(run, trainer.world, training)
        old = state is not None and state.meter is None
        self.meter = Meter(trainer, trained_seconds(run / "metrics.jsonl") if old else 0.0)
        self.previous = trainer.folder
        """The newest checkpoint."""
        self.profile: ProfileWindow | None = None
        if report.profile is not None and trainer.world.first:
            self.profile = ProfileWindow(run / "profile", *report.profile)
        self.score: tuple[int, dict[str, float]] | None = None
        self.saved = trainer.step
        self.lost: int | None = None

    def train(self) -> bool:
        """Run until the last step is done, scored and saved, or a signal stops the run.

        Returns:
            Whether all steps are done; if not, the run is saved and can go on.

        Raises:
            ValueError: the checkpoint at the end could not be written, or most steps were left out.
        """
        trainer, training = self.trainer, self.trainer.config.training
        self.length.start()
        total, first = self.length.known, trainer.world.first
        self.pay()
        stopped = self.status().stop
        with Progress("train", total, enabled=first, begun=trainer.step, first="valid") as bar:
            while trainer.step < self.length.steps and not stopped:
                shown = self.step()
                status = self.tend_checkpoints()
                self.length.fit(trainer.step, status.seconds)
                if self.due(training.save_every, trainer.step):
                    self.save()
                bar.total, stopped = self.length.known, status.stop
                bar.update(1, **shown)
        if stopped:
            self.save()
        self.close_checkpoint()
        for sink in self.sinks:
            sink.close()
        (lost,) = trainer.world.totals([self.lost == trainer.step])
        if lost:
            raise ValueError(
                f"the checkpoint of step {trainer.step} could not be written; make room and "
                "start the same command again"
            )
        if trainer.step < self.length.steps or self.owed != Owed():
            return False
        judge_skipped(trainer.skipped, trainer.step, trainer.world.first)
        return True

    def step(self) -> dict[str, str]:
        """One training step, and what is due to be looked at and written after it.

        Returns:
            What is new for the progress line.
        """
        trainer, training = self.trainer, self.trainer.config.training
        logged = self.due(training.log_every, trainer.step + 1)
        validated = self.due(training.validate_every, trainer.step + 1)
        if self.profile is not None:
            self.profile.before(trainer.step)
        watch = self.observer.see if logged or validated else None
        with self.meter.timing(), self.threads.unit():
            result = trainer.train_step(self.length.steps, watch)
        self.meter.count(result.pop("nats"), result.pop("tokens"))
        record = {"step": trainer.step, **result}
        shown = {}
        if logged:
            record |= self.meter.summary() | self.skipped()
            shown = self.meter.shown(record)
            if self.threads.finding:
                shown["threads"] = str(torch.get_num_threads())
            if trainer.skipped:
                shown["skipped"] = str(trainer.skipped)
            self.write(record)
        if self.profile is not None:
            self.profile.after(trainer.step, last=trainer.step == self.length.steps)
        if validated:
            attention = self.observer.attention()
            self._owe(validation={n: share for n, share in attention.items() if isfinite(share)})
        every = trainer.config.report.sample_every
        if every is not None and self.due(every, trainer.step):
            self._owe(sample=True)
        return shown | self.pay()

    def pay(self) -> dict[str, str]:
        """Do what is owed, unless a rank is asked to stop meanwhile."""
        shown = {}
        try:
            if self.owed.validation is not None:
                shown = self.validate(self.owed.validation)
                self._owe(validation=None)
            if self.owed.sample:
                self.sample()
                self._owe(sample=False)
        except StopAskedError:
            pass
        return shown

    def _owe(self, **changes: Any) -> None:
        self.owed = self.owed.model_copy(update=changes)

    def give_way(self) -> None:
        """Raise StopAskedError on all ranks if one is asked to stop."""
        (asked,) = self.trainer.world.totals([self.stop.asked])
        if asked:
            raise StopAskedError

    def skipped(self) -> dict[str, float]:
        """Steps that were left out so far, if any; at the end also as a share of all."""
        trainer = self.trainer
        if not trainer.skipped:
            return {}
        share = {"skipped_share": trainer.skipped / trainer.step}
        return {"skipped": trainer.skipped} | (share if self.is_last(trainer.step) else {})

    def validate(self, attention: dict[str, float]) -> dict[str, str]:
        """Score the validation split; `attention` belongs to the same record."""
        score, step = self.observer.validate(), self.trainer.step
        self.score = (step, {f"validation_{score.unit}": score.bits})
        split = self.observer.split
        record = {"step": step, **self.score[1]}
        if split.unknown_words is not None:
            record["validation_unknown_words"] = split.unknown_words
        value = score.bits
        if split.unit not in (score.unit, "bits_per_byte"):
            value = in_unit(split, score.nats / score.tokens)
            record[f"validation_{split.unit}"] = value
        self.write(record | attention)
        return {"valid": f"{value:.3f}"}

    def sample(self) -> None:
        """Let the model write; a full disk only costs the sample."""
        path = self.run / "samples" / f"step-{self.trainer.step:08d}.txt"
        try:
            self.observer.write_sample(path)
        except OSError as error:
            warn(f"{path} was not written ({error.strerror})")

    def due(self, every: int, step: int) -> bool:
        """Whether something is done after `step` steps; everything is after the last."""
        return step % every == 0 or self.is_last(step)

    def is_last(self, step: int) -> bool:
        """Whether this is the run's last step."""
        return step == self.length.steps

    def write(self, record: dict[str, float]) -> None:
        """Append to metrics.jsonl and what else the report asks for."""
        for sink in self.sinks:
            sink.write(record)

    def status(self) -> Status:
        """What the ranks agree on now."""
        here = (self.stop.asked, self.writer.busy, self.writer.error is not None)
        world = self.trainer.world
        stop, writing, failed, seconds = world.totals([*here, self.length.seconds()])
        return Status(bool(stop), bool(writing), bool(failed), seconds / world.size)

    def tend_checkpoints(self) -> Status:
        """Publish the checkpoint that is being written if all ranks are through with it."""
        status = self.status()
        if self.writer.snapshot is not None and not status.writing:
            step = self.writer.snapshot.step
            written = self.writer.finish(status.failed)
            if written is None:
                self.lost = step
            self.previous = written or self.previous
            if self.writer.error is not None:
                warn(f"the checkpoint of step {step} was not written ({self.writer.error})")
        return status

    def save(self) -> None:
        """Begin to write a checkpoint of this step, after the one before is through."""
        if self.saved == self.trainer.step:
            return
        self.close_checkpoint()
        snapshot = self.trainer.snapshot(self.previous)
        if self.score is not None and self.score[0] == snapshot.step:
            for name, score in self.score[1].items():
                snapshot.state[name] = score if isfinite(score) else None
        snapshot.state.update(self.length.state(), meter=self.meter.state())
        snapshot.state["owed"] = self.owed.model_dump()
        self.saved = snapshot.step
        self.writer.start(snapshot)

    def close_checkpoint(self) -> None:
        """Wait for the checkpoint that is being written."""
        if self.writer.snapshot is not None:
            self.writer.wait()
            self.tend_checkpoints()
