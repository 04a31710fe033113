"""Signals that ask a run to save and stop."""

import signal
from types import FrameType

STOPPED = 75
"""Exit status of a run that a signal has stopped: saved, and to be continued by the same command
(EX_TEMPFAIL in BSD's sysexits.h)."""


class StopRequest:
    """Remembers SIGTERM and SIGUSR1, which the loop heeds between two steps."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def listen(self) -> None:
        """Take the signals from now on; a second one of a kind does no harm."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._remember)

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.signal = number
