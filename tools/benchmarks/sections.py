"""Parts of a long benchmark, in the time that there is: one that fails does not stop the others."""

import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from data.common.say import say


class OutOfTimeError(BaseException):
    """The time of all parts together is up; no part may take it for an error of its own."""


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """Break off what is done in the context when time.monotonic() passes `deadline`."""

    def ring(_: int, __: FrameType | None) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(deadline - time.monotonic(), 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Sections:
    """Runs the parts of a benchmark one after the other and keeps what each returns.

    Args:
        minutes: time for all together; a part that would not fit any more is left out, in words,
            and one that is not through by then is broken off.
    """

    def __init__(self, minutes: float) -> None:
        self.deadline = time.monotonic() + 60 * minutes
        self.results: dict[str, Any] = {}
        self.failed: list[str] = []

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.deadline - time.monotonic()

    def run(self, name: str, seconds: float, part: Callable[[], Any]) -> None:
        """Run a part if `seconds`, which it may take, are left."""
        if self.left < seconds:
            say(f"{name}: left out, {max(self.left, 0):.0f} seconds are left and it may take more")
            self.results[name] = {"left_out": "no time"}
            return
        say(f"{name} ({self.left:.0f} seconds left)")
        try:
            with until(self.deadline):
                self.results[name] = part()
        except OutOfTimeError:
            say(f"{name}: broken off, the time is up")
            self.results[name] = {"left_out": "broken off, the time was up"}
        except Exception as error:
            # Whatever goes wrong in one part, the numbers of the others are wanted.
            say(traceback.format_exc().rstrip())
            self.results[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            self.failed.append(name)
