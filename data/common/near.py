"""The name that was meant, where one is near; a name that is not near helps nobody."""

from collections.abc import Collection
from difflib import SequenceMatcher

NEAR = 0.6
"""Share of letters that two names must have in common, in order."""


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
