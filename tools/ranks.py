"""Program: start ranks with torchrun or deepspeed, pass signals on to them, end as they end.

Left to themselves, torchrun calls a run that was stopped and saved a failure, with a traceback;
deepspeed leaves its ranks behind when it is ended, and both kill ranks that take more than half a
minute to save. `python -m tools.ranks torchrun --nproc_per_node=2 -m -- lm.train ...` and
`python -m tools.ranks deepspeed --num_accelerators=2 --module lm.train ...` do not.
"""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
from types import FrameType

import psutil

from data.common.say import say, tell
from data.common.signals import handling, signal_name
from lm.training.stopping import STATUS, STOPPED, program_of

MODULE = "lm.train"
LAST_STATUS = 255 - max(signal.valid_signals())
"""Statuses beyond are signals that have ended a rank of deepspeed."""


class Ranks:
    """The ranks below this process, to which signals go."""

    def __init__(self) -> None:
        self.launcher: subprocess.Popen[bytes] | None = None
        self.launcher_stopped = False
        """Whether a signal went to the launcher, whose status then says nothing of the ranks."""
        self.passed: set[int] = set()
        """Signals that went to ranks."""

    def found(self) -> list[psutil.Process]:
        """Processes that a launcher has started as ranks."""
        found = []
        for process in psutil.Process().children(recursive=True):
            try:
                if program_of(process.cmdline()) == MODULE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def send(self, number: int, _: FrameType | None) -> None:
        """Pass a signal on; before there are ranks, and to those of other machines, by way of the
        launcher.
        """
        ranks = self.found()
        for process in ranks:
            self.passed.add(number)
            try:
                process.send_signal(number)
            except psutil.Error:
                continue
        if not ranks and self.launcher is None:
            raise SystemExit(STOPPED)
        if not ranks and self.launcher is not None:
            self.launcher_stopped = True
            self.launcher.send_signal(signal.SIGTERM)

    def status_of(self, code: int, rank: str = "a rank") -> int:
        """The status that a rank's end makes: that of the rank, or of the signal -code."""
        if code >= 0:
            return code
        if -code in self.passed:
            # It had not begun to listen, so it had nothing to save.
            return STOPPED
        ended = f"{rank} was ended by {signal_name(-code)}"
        say(f"{ended}; the same command goes on from a checkpoint")
        return 1


def torchrun(arguments: list[str], ranks: Ranks) -> int:
    """Run torchrun in this process; returns the status of the first rank that did not end well."""
    check_endpoint(arguments)
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # What it says of ranks that fail adds nothing to what they say themselves.
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    os.environ[STATUS] = "1"
    # It would handle those that it is told of, and must handle some.
    try:
        with handling(ranks.send):
            run.main(["--signals_to_handle=SIGCONT", *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        return ranks.status_of(int(failure.exitcode), f"rank {rank}")
    return 0


def check_endpoint(arguments: list[str]) -> None:
    """ValueError if the first node's name has no address, for which torchrun would wait."""
    for argument in arguments:
        if found := re.fullmatch(r"--rdzv[_-]endpoint=(.*?)(:\d+)?", argument):
            try:
                socket.getaddrinfo(found[1], None)
            except (OSError, UnicodeError) as error:
                raise ValueError(
                    f"{found[1]!r} is the name of no machine that this one knows ({error}): give "
                    "the first node's as all nodes know it"
                ) from None


def deepspeed(arguments: list[str], ranks: Ranks) -> int:
    """Run deepspeed; returns its status, which is that of the first rank that did not end well."""
    command = [sys.executable, "-m", "deepspeed.launcher.runner", *arguments]
    with handling(ranks.send):
        # In a session of its own: a terminal's Ctrl-C would reach every process of it.
        ranks.launcher = subprocess.Popen(command, start_new_session=True)
        status = ranks.launcher.wait()
    if ranks.launcher_stopped and status:
        return STOPPED
    if status < 0:
        return ranks.status_of(status, "deepspeed")
    # What a rank that was ended by signal N makes of it is 256 - N.
    return ranks.status_of(status - 256 if status > LAST_STATUS else status)


def main(argv: list[str]) -> int:
    """Start ranks and wait for their end; returns the exit status."""
    launchers = {"torchrun": torchrun, "deepspeed": deepspeed}
    if argv[:1] in (["-h"], ["--help"]):
        tell((__doc__ or "").strip())
        return 0
    if not argv or argv[0] not in launchers:
        say("ranks: error: the first word must be torchrun or deepspeed")
        return 2
    try:
        return launchers[argv[0]](argv[1:], Ranks())
    except (OSError, ValueError) as error:
        say(f"ranks: error: {error}")
        return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
