"""What cannot be shown is lost, and nothing else: full and closed streams, other encodings."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.common.progress import Progress
from data.common.say import forgiving, reader_left, say, visible
from tests.streams import refusing

ROOT = Path(__file__).parents[3]


ERRORS = (errno.ENOSPC, errno.EPIPE, errno.EIO, errno.EBADF, errno.EDQUOT)


@pytest.mark.parametrize("number", ERRORS, ids=os.strerror)
def test_a_stream_that_takes_nothing_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(sys, "stderr", refusing(number))
    monkeypatch.setattr(sys, "stdout", refusing(number))
    say("bare")
    with forgiving() as shown:
        for stream in (sys.stdout, sys.stderr):
            print("a" * 100_000, file=stream, flush=True)
        say("line")
        with Progress("train", 2) as bar:
            bar.update()
            bar.write("line")
        assert reader_left() == (number == errno.EPIPE)
    assert shown is not None and shown.error is not None
    assert shown.error.errno == number


def test_closed_streams_take_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    say("line")
    with Progress("train", 1) as bar:
        bar.update()
    with forgiving():
        print("line")
        print("line", file=sys.stderr)
        assert sys.stdin.read() == ""
    assert sys.stdout is None


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_an_encoding_lacks_is_escaped(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    bytes_out, bytes_err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_out, encoding))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(bytes_err, encoding))
    say("bare Ж")
    with forgiving():
        print("a Ж \udce9 b")
        say("line Ж")
    assert bytes_out.getvalue() == rb"a \u0416 \udce9 b" + b"\n"
    assert bytes_err.getvalue() == rb"bare \u0416" + b"\n" + rb"line \u0416" + b"\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\x07", r"a\x1b[31mred\x07"),
        ("name\r.txt\x00", r"name\r.txt\x00"),
        ("two\nlines\tÜ", "two\nlines\tÜ"),
        ("right\u202eleft", r"right\u202eleft"),
        ("line\u2028break\x85", r"line\u2028break\x85"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_control_characters_are_written_as_escapes(text: str, shown: str) -> None:
    assert visible(text) == shown


STREAMS = {
    "stderr closed": "2>&-",
    "stdout closed": ">&-",
    "both closed": ">&- 2>&-",
    "all closed": "<&- >&- 2>&-",
    "stderr full": "2>/dev/full",
    "stdout full": ">/dev/full",
    "both full": ">/dev/full 2>&1",
    "reader gone": "| true",
}


@pytest.mark.parametrize("streams", STREAMS.values(), ids=STREAMS.keys())
def test_the_work_is_done_whatever_becomes_of_the_streams(tmp_path: Path, streams: str) -> None:
    program = tmp_path / "work.py"
    program.write_text(
        "import os, sys\n"
        "from pathlib import Path\n"
        "from data.common.command import run\n"
        "from data.common.progress import Progress\n"
        "def main(out: Path) -> None:\n"
        '    """Work.\n\n    Args:\n        out: result.\n    """\n'
        "    with Progress('work', 1) as bar:\n"
        "        bar.update()\n"
        "    print('x' * 1_000_000)\n"
        "    file = out.open('w')\n"
        "    os.system('echo in the way; echo in the way >&2')\n"
        "    file.write('whole')\n"
        "    file.close()\n"
        "run(main)\n"
    )
    out = tmp_path / "out"
    command = f'"{sys.executable}" "{program}" --out "{out}" {streams}; exit "${{PIPESTATUS[0]}}"'
    result = subprocess.run(
        ["bash", "-c", command],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert out.read_text() == "whole"
    assert "Traceback" not in result.stderr and "Exception" not in result.stderr
    full = "full" in streams and "2>" not in streams
    assert ("not all was shown" in result.stderr) == full
