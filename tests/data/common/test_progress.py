"""Progress: lines where there is no terminal, silence where it was asked for."""

import contextlib
import fcntl
import os
import pty
import struct
import termios

import pytest

from data.common import progress
from data.common.progress import Progress, clock


def test_lines_say_done_total_rate_time_left_and_postfix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Progress("train", 40) as bar:
        for step in range(1, 41):
            now = step * 2.0
            bar.update(loss=1 / step, lane="a")
            if step == 1:
                bar.write("saved")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "saved"
    assert lines[1] == "train: 6/40 step, 0.5 step/s, 1:08 left, loss 0.1667, lane a"
    assert lines[-1] == "train: 40/40 step, 0.5 step/s, 1:20 elapsed, loss 0.025, lane a"
    # At most one line in ten seconds, and one at the end.
    assert len(lines) == 1 + 8


def test_what_was_done_before_says_nothing_of_the_rate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Progress("train", 100, begun=60) as bar:
        now = 20.0
        bar.update(10)
    assert capsys.readouterr().err.startswith("train: 70/100 step, 0.5 step/s, 1:00 left")


def test_large_numbers_are_scaled_and_totals_may_be_unknown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("read", None, "B", scale=True) as bar:
        bar.update(3_000_000)
    assert capsys.readouterr().err.startswith("read: 3M B, ")


def test_a_narrow_terminal_keeps_the_first_value_in_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = pty.openpty()
    fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 25, 80, 0, 0))
    with os.fdopen(writing, "w") as terminal:
        monkeypatch.setattr(progress.sys, "stderr", terminal)
        with Progress("train", 1395, first="valid") as bar:
            bar.update(1, **{"bits/byte": "1.702", "tok/s": "5,822", "mfu": "not measured"})
            bar.update(1, memory="0.93 GiB", valid="1.734")
            assert bar._bar is not None
            bar._bar.refresh()
    text = ""
    # The end of what a terminal has written to it is an error.
    with contextlib.suppress(OSError):
        while part := os.read(reading, 1 << 16):
            text += part.decode()
    os.close(reading)
    last = [line for line in text.split("\r") if line.strip()][-1].strip()
    assert len(last) <= 80
    # A value is there whole or not at all.
    assert last.endswith("]") and "valid=1.734" in last, last
    assert "mfu" not in last


def test_nothing_is_shown_when_disabled_or_after_a_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("train", 2, enabled=False) as bar:
        bar.update()
        bar.write("line")
    with pytest.raises(KeyError), Progress("train", 2):
        raise KeyError
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00")]
)
def test_durations_read_like_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
