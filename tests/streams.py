"""Streams that take nothing, as full disks and pipes without a reader do."""

import io
import os


class Refusing(io.RawIOBase):
    """A stream that takes nothing."""

    def __init__(self, error: OSError) -> None:
        self.error = error

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        raise self.error


def refusing(number: int) -> io.TextIOWrapper:
    error = OSError(number, os.strerror(number))
    return io.TextIOWrapper(io.BufferedWriter(Refusing(error)), encoding="utf-8")
