"""What a single value may be, whichever option of whichever program it is given to.

Numbers are finite and below 2^63, or what their annotation says beside; a path has a name without
control characters; a bare value for a list is a list of one. Of a name that does not exist, the one
that was meant is told where one is near.
"""

import math
import operator
import types
import typing
from collections.abc import Collection
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from data.common.say import visible
from data.common.yamlfile import parse_yaml

NUMBERS = {int, float, bool, types.NoneType}
BEYOND = 1 << 63
"""No number of anything; integers of tensors and files end here."""
RULES = (
    ("ge", "at least", operator.ge),
    ("gt", "above", operator.gt),
    ("le", "at most", operator.le),
    ("lt", "below", operator.lt),
)
"""Bounds that an annotation may have: Annotated[int, Field(ge=1)]."""
NEAR = 0.6
"""Share of letters that two names must have in common, in order."""
SHOWN = 80
"""Characters of a wrong value that are shown."""


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The members of a union; of any other type, the type alone."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def choices(kind: Any) -> list[str] | None:
    """The words that a value may be, if there is a list of them."""
    words = [word for each in alternatives(kind) for word in typing.get_args(each)]
    named = any(typing.get_origin(each) is typing.Literal for each in alternatives(kind))
    return [str(word) for word in words] if named else None


def list_of(kind: Any) -> Any | None:
    """The type of the elements, if a value is a list of any length of plain values."""
    for each in alternatives(kind):
        inner = typing.get_args(each)
        if typing.get_origin(each) is list or inner[1:] == (...,):
            return None if typing.get_origin(inner[0]) in (list, tuple) else inner[0]
    return None


def as_written(kind: Any, written: str) -> Any:
    """The value of an option as it is written on a command line, yet to be converted to its type.

    Text and paths are taken as they are, all else is read as in a file. What begins with "["
    is a list, numbers may stand between commas alone, and any other text is one element:
    `--stop self` and `--stop '[self]'` are the same.

    Raises:
        YamlError: it cannot be read.
    """
    kinds = alternatives(kind)
    if written == "null" and types.NoneType in kinds:
        return None
    if {str, Path} & {*kinds} or written in typing.get_args(kind):
        return written
    element = list_of(kind)
    if element is None:
        return parse_yaml(written) if written.strip() else written
    if written.startswith("["):
        return parse_yaml(written)
    if element in (int, float):
        return parse_yaml(f"[{written}]")
    return [written]


def complaint(annotation: Any, value: Any, beyond: float = BEYOND) -> str | None:
    """What a converted value would have to be, where it is not; None where it is.

    Args:
        annotation: the type with the bounds of its numbers.
        value: of that type, as jsonargparse has made it.
        beyond: what no number reaches, whatever its annotation says.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "a finite number"
    if isinstance(value, (int, float)) and not -beyond < value < beyond:
        return "a number between -2^63 and 2^63"
    if isinstance(value, Path) and visible(str(value)) != str(value).translate(BREAKS):
        return "a path without control characters"
    for each in alternatives(annotation):
        if typing.get_origin(each) is typing.Annotated and value is not None:
            if found := _outside(each, value):
                return found
            each = each.__origin__
        if isinstance(value, (list, tuple)) and typing.get_origin(each) in (list, tuple):
            inner = [each for each in typing.get_args(each) if each is not ...]
            kinds = inner if len(inner) == len(value) else inner[:1] * len(value)
            for kind, element in zip(kinds, value, strict=True):
                if found := complaint(kind, element, beyond):
                    return f"a list in which each is {found}" if len(inner) == 1 else found
    return None


def require_ranges(config: Any, section: str = "") -> None:
    """See that the numbers of a dataclass keep the bounds of their annotations, whoever made it.

    Args:
        config: the dataclass.
        section: of a run's settings that it is, as in training.lanes.

    Raises:
        ValueError: one does not.
    """
    prefix = f"{section}." if section else ""
    for name, annotation in typing.get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if wanted := complaint(annotation, value, math.inf):
            raise ValueError(f"{prefix}{name} must be {wanted}, not {shown(value)}")


BREAKS = {9: None, 10: None}
"""What `visible` leaves as it is, and a name must not have either."""


def _outside(annotation: Any, value: Any) -> str | None:
    """The bound of an annotation that a number does not keep."""
    for field in annotation.__metadata__:
        for rule in getattr(field, "metadata", ()):
            for attribute, words, holds in RULES:
                bound = getattr(rule, attribute, None)
                if bound is not None and not holds(value, bound):
                    return f"{words} {bound}"
    return None


def no_number(kind: Any, value: Any) -> bool:
    """Whether a text is given where only numbers are: jsonargparse would read 1:30 as 90."""
    return isinstance(value, str) and {*alternatives(kind)} <= NUMBERS


def names_nothing(kind: Any, written: Any) -> bool:
    """Whether an empty text is given for a path, which would be the folder one is in."""
    if Path in alternatives(kind):
        return written == ""
    return list_of(kind) is Path and isinstance(written, list) and "" in written


def shown(value: Any) -> str:
    """A value in a sentence, however long it is."""
    written = "null" if value is None else repr(value)
    return written if len(written) <= SHOWN else f"{written[: SHOWN - 3]}..."


def nearest(written: str, known: Collection[str]) -> str | None:
    """The known name that is nearest to what was written, or None where none is near.

    Of dotted names the last words must be near by themselves: `optim.` before both is no likeness.
    """
    scores = {name: _likeness(written, name) for name in known}
    best = max(scores, key=lambda name: scores[name], default=None)
    return best if best is not None and scores[best] >= NEAR else None


def did_you_mean(written: str, known: Collection[str], dashes: str = "") -> str:
    """What to say after a name that does not exist: the nearest one, or all that there are."""
    near = nearest(written, known)
    if near is not None:
        return f"did you mean {dashes}{near}?"
    return f"there are {', '.join(dashes + name for name in known)}"


def _likeness(written: str, name: str) -> float:
    whole = _ratio(written, name)
    *above, last = written.split(".")
    *their_above, their_last = name.split(".")
    return min(whole, _ratio(last, their_last)) if above and their_above else whole


def _ratio(one: str, other: str) -> float:
    # Long texts cost their product, and are near to no name.
    return SequenceMatcher(None, one[:100].lower(), other.lower(), autojunk=False).ratio()
