"""Scores at several lengths: chosen on validation text, reported on test (paper, appendix B)."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

from data.common.schema import Count, Size
from lm.loading import Lengths

Point = dict[str, Any]
NAMES = ("segment", "memory", "compressed")


@dataclass(frozen=True)
class SweepConfig:
    """Lengths to be tried on the validation split, in all combinations; the best is then scored."""

    segment: tuple[Size, ...] = ()
    """Tokens read at once."""
    memory: tuple[Count, ...] = ()
    """Slots of memory in each layer."""
    compressed: tuple[Count, ...] = ()
    """Slots of compressed memory in each layer."""

    def __bool__(self) -> bool:
        return bool(self.segment or self.memory or self.compressed)

    def points(self, fixed: Lengths) -> list[Lengths]:
        """Every combination; what no list names is as in `fixed`.

        Raises:
            ValueError: a length is given both ways.
        """
        for name in NAMES:
            if getattr(self, name) and getattr(fixed, name) is not None:
                raise ValueError(f"give either --{name} or --sweep.{name}")
        choices = [getattr(self, name) or (getattr(fixed, name),) for name in NAMES]
        return [Lengths(*lengths) for lengths in product(*choices)]


def sweep(
    points: list[Lengths], score: Callable[[Lengths], Point]
) -> tuple[Lengths, dict[str, Any]]:
    """The best of some lengths, and what all of them give.

    Args:
        points: lengths to try.
        score: scores the validation split; returns lengths, `value` (less is better) and `unit`.
    """
    found = [score(point) for point in points]
    best = min(range(len(found)), key=lambda index: found[index]["value"])
    return points[best], {"split": "validation", "points": found, "best": best}


def table(swept: dict[str, Any]) -> str:
    """The points in lines, the chosen one marked."""
    unit = swept["points"][0]["unit"].replace("_", " ")
    lines = [f"{'segment':>9}{'memory':>9}{'compressed':>12}  {unit}, {swept['split']}"]
    for number, point in enumerate(swept["points"]):
        lengths = f"{point['segment']:>9}{point['memory']:>9}{point['compressed']:>12}"
        mark = "  <- chosen" if number == swept["best"] else ""
        lines.append(f"{lengths}{point['value']:10.4f}{mark}")
    return "\n".join(lines)


def point(lengths: dict[str, Any], value: float, unit: str) -> Point:
    """One point of a sweep; `lengths` has segment, memory and compressed, as a protocol has."""
    return {name: lengths[name] for name in NAMES} | {"value": value, "unit": unit}
