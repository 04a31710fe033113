"""How long a run is: a number of steps, or as many as fit in some minutes."""

import sys
import time
from typing import Any

from lm.training.checkpoint import CheckpointState
from lm.training.config import TrainingConfig


class Length:
    """The number of steps of a run; where minutes are given, what fits in them at its pace so far.

    Such a run is as far as its time has passed, whatever the machine does meanwhile: a step of it
    has the learning rate of the same share of a run with a known number of steps.
    """

    def __init__(self, training: TrainingConfig, state: CheckpointState | None) -> None:
        """`state`: that of the checkpoint which the run continues from; none for a new run."""
        self.budget = None if training.minutes is None else 60 * training.minutes
        before = None if state is None else state.steps
        self.steps: int = training.steps or before or sys.maxsize
        """The last step's number, beyond all steps as long as nothing is known."""
        self._before: float = 0.0 if state is None else state.seconds or 0.0
        self._agreed = self._before
        self._started = time.monotonic()

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
        if self.budget is not None and step < self.steps:
            self.steps = max(step + 1, int(step * self.budget / seconds))

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to hold for a run with minutes to go on."""
        if self.budget is None:
            return {}
        return {"steps": self.steps, "seconds": self._agreed}
