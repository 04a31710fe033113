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
        """`state`: that of the checkpoint which the run continues from; none for a new run.

        Raises:
            ValueError: the run has trained for more minutes than it may, or made more steps.
        """
        self.minutes = training.minutes
        self.budget = None if training.minutes is None else 60 * training.minutes
        self._before: float = 0.0 if state is None else state.seconds or 0.0
        self._agreed = self._before
        self._started = time.monotonic()
        self.steps: int = training.steps or self._announced(state)
        """The last step's number, beyond all steps as long as nothing is known."""
        if state is not None and state.step > self.steps:
            raise ValueError(f"the run has {state.step} steps; training.steps {self.steps} is less")

    def _announced(self, state: CheckpointState | None) -> int:
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
        if self.budget is not None and step < self.steps:
            self.steps = max(step + 1, int(step * self.budget / seconds))

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to hold for a run with minutes to go on."""
        return {"steps": self.steps, "minutes": self.minutes, "seconds": self._agreed}
