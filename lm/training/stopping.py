"""When a run ends: its length in steps or minutes, signals, and a launcher that is gone."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from data.common.say import say
from data.common.signals import ENDING, handling
from lm.runs.run_config import TrainingConfig

if TYPE_CHECKING:
    # Launchers read names of this file, and checkpoints take a while to import.
    from lm.runs.checkpoints import CheckpointState


class Length:
    """The number of steps of a run; where minutes are given, what fits in them at its pace so far.

    Such a run is as far as its time has passed, whatever the machine does meanwhile: a step of it
    has the learning rate of the same share of a run with a known number of steps.
    """

    def __init__(self, training: TrainingConfig, state: "CheckpointState | None") -> None:
        """`state`: that of the checkpoint which the run continues from; none for a new run.

        Raises:
            ValueError: the run has trained for more minutes than it may, or made more steps.
        """
        self.minutes = training.minutes
        self.budget = None if training.minutes is None else 60 * training.minutes
        self._before: float = 0.0 if state is None else state.seconds or 0.0
        self._agreed = self._before
        self._started = time.monotonic()
        self._begun = 0 if state is None else state.step
        self._once: tuple[int, float] | None = None
        """The step that this process has begun with and its seconds, some of which come once, as
        those of compiling do; 0 of each where it was not timed alone."""
        self.steps: int = training.steps or self._announced(state)
        """The last step's number, beyond all steps as long as nothing is known."""
        if state is not None and state.step > self.steps:
            raise ValueError(f"the run has {state.step} steps; training.steps {self.steps} is less")

    def _announced(self, state: "CheckpointState | None") -> int:
        """What is known of the number of steps of a run with minutes that goes on."""
        assert self.budget is not None
        if state is None:
            return sys.maxsize
        # A checkpoint without `minutes` is of a time when they could not change.
        same = "minutes" not in state.model_fields_set or state.minutes == self.minutes
        if state.steps is not None and same:
            return state.steps
        if self._before >= self.budget:
            raise ValueError(
                f"the run has trained {self._before / 60:.1f} minutes; training.minutes "
                f"{self.minutes:g} is less"
            )
        if not self._before:
            return sys.maxsize
        return max(state.step + 1, int(state.step * self.budget / self._before))

    @property
    def known(self) -> int | None:
        """The number of steps, or none before the first step that is timed."""
        return None if self.steps == sys.maxsize else self.steps

    def start(self) -> None:
        """Time counts from now."""
        self._started = time.monotonic()

    def seconds(self) -> float:
        """For how long the run has trained here, before it was continued included."""
        return self._before + time.monotonic() - self._started

    def fit(self, step: int, seconds: float) -> None:
        """Estimate the number of steps after one of them.

        Args:
            step: steps that are done; the one that was announced as the last remains it.
            seconds: what they took, the same on all ranks.
        """
        self._agreed = seconds
        if self._once is None:
            alone = step == self._begun + 1
            self._once = (1, seconds - self._before) if alone else (0, 0.0)
        if self.budget is None or step >= self.steps:
            return
        counted, took, least = step - self._once[0], seconds - self._once[1], 1
        if not counted:
            # Nothing is known but the first step, which may be slow: it announces no last one.
            counted, took, least = step, seconds, 2
        left = int((self.budget - seconds) * counted / max(took, 1e-9))
        self.steps = step + max(left, least if seconds < self.budget else 1)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to hold for a run with minutes to go on."""
        return {"steps": self.steps, "minutes": self.minutes, "seconds": self._agreed}


STOPPED = 75
"""Exit status of a run that a signal has stopped: saved, and to be continued by the same command
(EX_TEMPFAIL in BSD's sysexits.h)."""

LAUNCHERS = {
    *("torchrun", "torch.distributed.run", "torch.distributed.launch"),
    *("deepspeed", "deepspeed.launcher.runner", "deepspeed.launcher.launch"),
    *("accelerate", "accelerate.commands.launch", "tools.ranks"),
}
"""Programs and modules that start ranks."""

STATUS = "LM_RANKS_STATUS"
"""Set in the environment of ranks whose launcher passes their exit status on."""


class StopAskedError(Exception):
    """What was going on between two steps is left, so that the run can be saved."""


def stopped_status() -> int:
    """Exit status of a rank that was stopped.

    torchrun would report any but 0 as a failure, with a traceback and status 1.
    """
    return 0 if "TORCHELASTIC_RUN_ID" in os.environ and STATUS not in os.environ else STOPPED


class StopRequest:
    """Remembers that this rank was asked to stop, which the loop heeds between two steps.

    Signals are read by a thread, because the main thread may for minutes wait in a collective,
    where Python does not run handlers: before the ranks have joined, and at a second Ctrl-C, that
    thread ends the process at once.
    """

    def __init__(self, joined: bool = False) -> None:
        self.signal: int | None = None
        self.joined = joined
        """Whether other ranks would notice if this one ended at once."""
        self.launchers: list[psutil.Process] = []

    @property
    def asked(self) -> bool:
        """Whether this rank is to stop."""
        return self.signal is not None or any(map(gone, self.launchers))

    @property
    def reason(self) -> str:
        """What asked, as far as this rank knows."""
        if self.signal is not None:
            return signal.Signals(self.signal).name
        return "the end of its launcher" if any(map(gone, self.launchers)) else "a signal"

    def end(self, step: int, first: bool = True) -> NoReturn:
        """End this rank, which has saved `step`; the first one says so."""
        if first:
            done = f"at step {step}, saved" if step else "before the first step"
            say(f"stopped by {self.reason} {done}; the same command goes on")
        raise SystemExit(stopped_status())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Context in which signals are requests to stop."""
        self.launchers = launchers()
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        thread = threading.Thread(target=self._read, args=(reading,), daemon=True)
        thread.start()
        try:
            with handling(lambda *_: None):
                yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(writing)
            thread.join()
            os.close(reading)

    def _read(self, reading: int) -> None:
        while numbers := os.read(reading, 1):
            self.hear(numbers[0])

    def hear(self, number: int) -> None:
        """Take a signal: the first is a request, a second Ctrl-C the end."""
        if number not in ENDING:
            return
        name = signal.Signals(number).name
        if not self.joined:
            say(f"train: stopped by {name} before the first step; the same command begins again")
            os._exit(stopped_status())
        again = number == signal.SIGINT and self.signal == signal.SIGINT
        if again:
            say("train: ended at once; the same command goes on from the last checkpoint")
            os._exit(128 + number)
        if number == signal.SIGINT:
            say("train: saves and stops after this step; Ctrl-C again ends it at once")
        self.signal = number


def launchers() -> list[psutil.Process]:
    """The processes above this one that have started it as a rank.

    When they are killed they cannot tell it, and it would go on without anyone who looks after it.
    """
    found: list[psutil.Process] = []
    if "RANK" not in os.environ:
        return found
    try:
        for process in psutil.Process().parents():
            if program_of(process.cmdline()) not in LAUNCHERS:
                break
            found.append(process)
    except psutil.Error:
        pass
    return found


def program_of(words: list[str]) -> str:
    """The program or module that a command line has Python run; nothing if it is not Python's.

    A shell, as of `ssh HOST 'torchrun ... &'`, may end and the launcher go on.
    """
    if words and Path(words[0]).name.startswith("python"):
        for number, word in enumerate(words[1:], 1):
            if word == "-m":
                return "".join(words[number + 1 : number + 2])
            if not word.startswith("-"):
                return Path(word).name
    return ""


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE or not process.is_running()
    except psutil.Error:
        return True
