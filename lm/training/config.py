"""Everything a run is made of, and how a resumed run is matched with its folder."""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from data.lanes import Order
from data.options import DataConfig
from lm.model import ModelConfig
from lm.training.optim import OptimConfig


@dataclass(frozen=True)
class TrainingConfig:
    """Length of a run, its lanes, and what it writes when."""

    steps: int | None = None
    """Optimiser steps; each reads one segment of every lane."""
    minutes: float | None = None
    """Instead of steps: as many as fit in this time, measured at the start of the run."""
    lanes: int = 16
    """Lanes over all ranks, each carrying its own memory; a multiple of the number of ranks."""
    order: Order = "stream"
    """stream: the corpus cut into equal lanes; documents: whole documents in shuffled order."""
    reset_documents: bool = False
    """Begin each document with empty memory (only with order documents)."""
    seed: int = 0
    """Seed of the weights, of dropout and of the order of documents."""
    log_every: int = 10
    """Steps between records in metrics.jsonl."""
    validate_every: int = 1000
    """Steps between scores on the validation split; the last step is always scored."""
    validation_segments: int | None = None
    """Segments of each of the lanes that these scores read; none: the whole split."""
    save_every: int = 1000
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints that are kept."""

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError("give either training.steps or training.minutes")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"training.minutes must be positive, not {self.minutes}")
        at_least_one = ("steps", "lanes", "log_every", "validate_every", "save_every", "keep")
        for name in (*at_least_one, "validation_segments"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"training.{name} must be at least 1, not {value}")
        if self.reset_documents and self.order == "stream":
            raise ValueError("training.reset_documents has no effect with training.order stream")


@dataclass(frozen=True)
class RunConfig:
    """A whole run: what config.yaml holds."""

    data: DataConfig
    model: ModelConfig
    optim: OptimConfig
    training: TrainingConfig


MAY_CHANGE = {"data.shards", "data.source"} | {
    f"training.{name}"
    for name in ("log_every", "validate_every", "validation_segments", "save_every", "keep")
}
"""Settings that a resumed run may have otherwise: they do not touch what is learnt (that the shards
are the same ones is checked by their hash)."""


def resumed(wanted: RunConfig, stored: RunConfig, run: str) -> RunConfig:
    """The config with which a run continues: as wanted, with the stored number of steps if the
    wanted one was to be measured.

    Raises:
        ValueError: a setting differs that would make it another run; names the first.
    """
    if wanted.training.minutes is not None:
        training = replace(wanted.training, minutes=None, steps=stored.training.steps)
        wanted = replace(wanted, training=training)
    for name, new, old in _differences(wanted, stored):
        if name not in MAY_CHANGE:
            raise ValueError(
                f"{run} holds a run with {name} {old}, not {new}: give another --run folder "
                f"or the same {name}"
            )
    return wanted


def _differences(new: Any, old: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for field in fields(new):
        a, b, name = getattr(new, field.name), getattr(old, field.name), prefix + field.name
        if is_dataclass(a):
            found += _differences(a, b, name + ".")
        elif a != b:
            found.append((name, a, b))
    return found
