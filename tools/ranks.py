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

from data.common.say import say
from data.common.signals import handling
from lm.training.stopping import STATUS, STOPPED, program_of

MODULE = "lm.train"


class Ranks:
    """The ranks below this process, to which signals go."""

    def __init__(self) -> None:
        self.launcher: subprocess.Popen[bytes] | None = None
        self.stopped = False

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
        self.stopped = True
        ranks = self.found()
        for process in ranks:
            try:
                process.send_signal(number)
            except psutil.Error:
                continue
        if not ranks and self.launcher is None:
            raise SystemExit(STOPPED)
        if not ranks and self.launcher is not None:
            self.launcher.send_signal(signal.SIGTERM)


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
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            say(f"rank {rank} was ended by {name}; the same command goes on from a checkpoint")
            return 1
        return int(failure.exitcode)
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
    return STOPPED if ranks.stopped and status else status


def main(argv: list[str]) -> int:
    """Start ranks and wait for their end; returns the exit status."""
    launchers = {"torchrun": torchrun, "deepspeed": deepspeed}
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
