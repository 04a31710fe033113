"""What a program shows, which is never a reason to stop it.

A stream may be closed, full, in ASCII, or a pipe whose reader has left. What cannot be shown is
lost and nothing else: `say` and `warn` write lines to stderr, and inside `forgiving` all that is
printed to either stream, by libraries too, goes the same way.
"""

import errno
import io
import os
import re
import select
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

CONTROL = re.compile(r"[^\n\t -~\xa0-\U0010ffff]|[\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
"""What moves a terminal's cursor, colours it, breaks or turns a line; and what is no character."""

MARKUP = re.compile(r"([\\`*_<>\[\]$|~#])")
"""What Markdown may read as more than itself."""


def say(line: str) -> None:
    """Print a line on stderr; where that cannot be done it is lost, and the work goes on."""
    stream = sys.stderr
    if stream is None:
        return
    text = visible(line) + "\n"
    encoding = getattr(stream, "encoding", None) or "utf-8"
    # OSError: the disk is full, the reader has left; ValueError: the stream was closed.
    with suppress(OSError, ValueError):
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()


def warn(line: str) -> None:
    """Say that something is not as it should be, without stopping."""
    say(f"warning: {line}")


def visible(text: str) -> str:
    """A text whose control characters are written as escapes; ends of lines and tabs stay."""
    return CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)


def plain(name: object) -> str:
    """A name on one line; what cannot be read, such as control characters and bytes that are not
    UTF-8, is written as escapes.
    """
    return "".join(map(_plain, str(name)))


def _plain(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    if "\udc80" <= character <= "\udcff":
        # How Python keeps a byte of a file's name that is not UTF-8.
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def marked(name: object) -> str:
    """A name for Markdown, which shows it as it is."""
    return MARKUP.sub(r"\\\1", plain(name))


class Sink(io.RawIOBase):
    """The way of bytes to a stream; what it does not take is lost, and why is kept."""

    def __init__(self, under: Any) -> None:
        self.under = under
        self.error: OSError | None = None

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """Of the stream."""
        return int(self.under.fileno())

    def isatty(self) -> bool:
        """Whether somebody reads it from a terminal."""
        return bool(self.under.isatty())

    def write(self, data: Any) -> int:
        """Take all of it, whatever becomes of it."""
        rest = memoryview(data)
        try:
            while rest:
                written = self.under.write(rest)
                if written is None:
                    # The pipe is full and does not block; the reader has to make room.
                    select.select([], [self.fileno()], [])
                else:
                    rest = rest[written:]
        except OSError as error:
            self.error = self.error or error
        return len(data)


@contextmanager
def forgiving() -> Iterator[Sink | None]:
    """Context in which stdout and stderr take whatever is printed, and are there if closed.

    Characters that an encoding lacks are written as escapes.

    Yields:
        The way to stdout, whose `error` says what it did not take, or None if it was closed.
    """
    _fill_closed()
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.stdin or Path(os.devnull).open()  # noqa: SIM115 - as long as the process
    sys.stdout, out = _wrapped(sys.stdout)
    sys.stderr, _ = _wrapped(sys.stderr)
    ours = sys.stdout, sys.stderr
    try:
        yield out
    finally:
        for stream in ours:
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdin, sys.stdout, sys.stderr = before


def tell(text: str) -> None:
    """Print a text on stdout; what it does not take is lost, and told unless its reader left."""
    with forgiving() as shown:
        print(text, flush=True)
        warn_of_loss(shown)


def warn_of_loss(shown: Sink | None) -> None:
    """Say that stdout did not take all, if so (inside `forgiving`)."""
    if shown is not None and shown.error is not None and shown.error.errno != errno.EPIPE:
        warn(f"not all was shown: standard output took no more ({shown.error.strerror})")


def reader_left() -> bool:
    """Whether stdout is a pipe that nobody reads any more (inside `forgiving`).

    A program of which the text shown is the only result may then end, quietly, by a
    BrokenPipeError; any other goes on.
    """
    sink = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(sink, Sink) and sink.error is not None and sink.error.errno == errno.EPIPE


def _fill_closed() -> None:
    """Put /dev/null where a standard stream was closed, or the next file opened would be it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, number)
            if opened != number:
                os.close(opened)


def _wrapped(stream: TextIO | None) -> tuple[TextIO, Sink | None]:
    """A text stream over a `Sink`; one that holds no bytes is left as it is."""
    if stream is None:
        return Path(os.devnull).open("w"), None
    buffer = getattr(stream, "buffer", None)
    if buffer is None:
        return stream, None
    with suppress(OSError, ValueError):
        stream.flush()
    sink = Sink(getattr(buffer, "raw", buffer))
    wrapper = io.TextIOWrapper(
        io.BufferedWriter(sink),
        encoding=stream.encoding,
        errors="backslashreplace",
        newline="\n",
        line_buffering=bool(stream.line_buffering) or stream is sys.stderr,
    )
    return wrapper, sink
