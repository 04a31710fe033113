"""Signals end a program with one line, after what it has open was closed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from data.common import command
from data.common.files import atomic_path
from data.common.signals import ENDING, handling


@pytest.mark.parametrize("number", ENDING, ids=lambda number: number.name)
def test_a_signal_is_one_line_and_leaves_nothing_half_written(
    number: signal.Signals, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        """Be ended while writing."""
        with atomic_path(tmp_path / "out") as path:
            path.write_text("half")
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        command.run(main, argv=[], called="toy")
    assert end.value.code == 128 + number
    said = "interrupted" if number == signal.SIGINT else f"ended by {number.name}"
    assert capfd.readouterr().err == f"toy: error: {said}\n"
    assert not list(tmp_path.iterdir()) and signal.getsignal(number) == before


def test_ignored_signals_stay_ignored_and_threads_hear_none() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handling(lambda *_: pytest.fail("heard")):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
    entered = []

    def enter() -> None:
        with handling(lambda *_: None):
            entered.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [signal.SIG_DFL]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        # Before a program begins it imports for seconds.
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -2, "interrupted\n"),
        # A program that takes long to close what it has open.
        (
            "import os, signal, time\n"
            "def main() -> None:\n"
            "    '''Be slow.'''\n"
            "    try:\n"
            "        os.kill(os.getpid(), signal.SIGINT)\n"
            "    finally:\n"
            "        os.kill(os.getpid(), signal.SIGINT)\n"
            "        time.sleep(60)\n"
            "command.run(main, argv=[])",
            -2,
            "",
        ),
    ],
    ids=["importing", "a second one"],
)
def test_ctrl_c_before_the_beginning_and_twice(body: str, status: int, said: str) -> None:
    program = f"from data.common import command\n{body}"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert (result.returncode, result.stderr) == (status, said)
