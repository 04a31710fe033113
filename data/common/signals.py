"""Signals that end a program in the middle of its work: one sentence, and nothing half written."""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from data.common.say import say

ENDING = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)
"""What people, terminals and schedulers send to have a program end."""


def signal_name(number: int) -> str:
    """SIGTERM, or of one without a name of its own, signal 40."""
    known = [each.name for each in signal.Signals if each == number]
    return known[0] if known else f"signal {number}"


class Interrupted(KeyboardInterrupt):
    """A signal came; what is open is closed on the way out.

    then: what becomes of the work, for the sentence.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number
        self.then = ""

    @property
    def sentence(self) -> str:
        """What happened."""
        interrupted = self.number == signal.SIGINT
        said = "interrupted" if interrupted else f"ended by {signal.Signals(self.number).name}"
        return f"{said}; {self.then}" if self.then else said

    @property
    def status(self) -> int:
        """Exit status, as shells count."""
        return 128 + self.number


@contextmanager
def handling(handle: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Context in which signals of `ENDING` go to `handle`.

    One that was ignored from the start stays so: `nohup` and a job in the background rely on it.
    """
    before: dict[int, Any] = {}
    # Python lets only the main thread hear signals.
    if threading.current_thread() is threading.main_thread():
        heard = [number for number in ENDING if signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def interrupt(number: int, _: FrameType | None) -> None:
    """Raise `Interrupted`; a second signal of the kind ends the program at once."""
    signal.signal(number, signal.SIG_DFL)
    raise Interrupted(number)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Say what ends a program; of Ctrl-C, without where it was."""
    if issubclass(kind, KeyboardInterrupt):
        say("interrupted")
    else:
        sys.__excepthook__(kind, error, trace)


if sys.excepthook is sys.__excepthook__:
    # Set on import: a program imports for seconds before it begins.
    sys.excepthook = _uncaught
