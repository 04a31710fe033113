"""One process at a time, whatever becomes of it: a lock the system releases at its end."""

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, holder: str) -> Iterator[None]:
    """Hold the lock file `path`, waiting for it if need be; the file is removed at the end.

    holder: what is said to be waited for.
    """
    while True:
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for {holder} to end", file=sys.stderr, flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            if not same_file(path, file.fileno()):
                continue
            try:
                yield
            finally:
                path.unlink()
            return


def same_file(path: Path, descriptor: int) -> bool:
    """Whether `path` is still the opened file: its former holder may have removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
