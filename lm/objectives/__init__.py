"""What training minimises: one file a family of losses. `training.objectives` names them."""

from collections.abc import Callable, Sequence

from lm.objectives.objective import Likelihood, Objective

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
