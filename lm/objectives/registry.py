"""Objectives by their names, which `training.objectives` gives."""

from collections.abc import Callable, Sequence

from lm.objectives.objective import Likelihood, Objective, ReadSegment, read_once
from lm.objectives.readings import Readings
from lm.objectives.readings_config import ReadingsConfig

OBJECTIVES: dict[str, Callable[[], Objective]] = {"likelihood": Likelihood}
"""By name; to add one, write it in a file of its own and enter it here."""


def chosen(names: Sequence[str]) -> list[Objective]:
    """Objectives by their names.

    Raises:
        ValueError: a name that is not known or stands twice, or no likelihood, which scores need.
    """
    for name in names:
        if name not in OBJECTIVES:
            raise ValueError(
                f"training.objectives names {name!r}; known are {', '.join(OBJECTIVES)}"
            )
    if "likelihood" not in names or len({*names}) < len(names):
        raise ValueError(
            f"training.objectives must name likelihood and each other once, not {list(names)}"
        )
    return [OBJECTIVES[name]() for name in names]


def reading_of(config: ReadingsConfig) -> tuple[list[Objective], ReadSegment]:
    """The objective of further readings, if there are any, and how segments are read."""
    if not config:
        return [], read_once
    readings = Readings(config)
    return [readings], readings.read
