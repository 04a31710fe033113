"""One process at a time, whatever becomes of it: a lock the system releases at its end.

A lock is a file that its holder removes; one that a killed process has left is taken like any
other. Where a file system knows no locks, as some cluster disks are mounted, that is said, and the
work goes on without.
"""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from data.common.outputs import resolved, writing_folder
from data.common.say import say, warn

WITHOUT_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
ATTEMPTS = 10


@contextmanager
def locked(path: Path, holder: str) -> Iterator[None]:
    """Hold the lock file `path`, waiting for it if need be.

    holder: what is said to be waited for.
    """
    lock = _file_lock(path)
    if not _taken(lock, path):
        say(f"waiting for {holder} to end")
        lock.acquire()
    with _held(lock, path):
        yield


@contextmanager
def alone(path: Path, held: str) -> Iterator[None]:
    """Hold the lock file `path`, or end at once if another process does.

    Args:
        path: the lock file; its folder is there.
        held: what is said if another process holds it, such as "another process writes OUT: wait
            until it ends, or give another --out".

    Raises:
        ValueError: another process holds it, or no file can be written there.
    """
    lock = _file_lock(path)
    if not _taken(lock, path):
        raise ValueError(held)
    with _held(lock, path):
        yield


@contextmanager
def new_folder(target: Path, option: str) -> Iterator[Path]:
    """Yield a folder to write into, which then becomes `target`, whole or not at all.

    What a killed process has left of it is removed.

    Args:
        target: is not there; folders above it are made.
        option: that names it.

    Raises:
        ValueError: it is there, or another process is making it.
    """
    _require_new(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    held = f"another process writes {target}: wait until it ends, or give another {option}"
    with alone(beside(target), held):
        _require_new(target)
        with writing_folder(target) as aside:
            yield aside


def _require_new(target: Path) -> None:
    if os.path.lexists(target):
        raise ValueError(f"{target} exists; give a folder that does not")


def beside(target: Path) -> Path:
    """The lock file of a file or folder that is only made at the end of the work."""
    place = resolved(target)
    return place.with_name(f".{place.name}.lock")


def _file_lock(path: Path) -> FileLock:
    return FileLock(path, fallback_to_soft=False)


def _taken(lock: FileLock, path: Path) -> bool:
    """Whether the lock could be taken, or need not be; ValueError where no file can be made."""
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent} is not there or no folder: make it first")
    if path.exists() and (not path.is_file() or path.stat().st_size):
        raise ValueError(f"{path} is in the way of a lock and is none: move it away")
    for _ in range(ATTEMPTS):
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if path.exists():
                return False
            # Its holder has just removed it, or the folder takes no files at all.
            time.sleep(0.01)
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise _closed(path, error.strerror or str(error)) from None
            line = f"the file system of {path.parent} has no locks ({error.strerror}); "
            warn(line + "see that no other process writes there")
            return True
        else:
            return True
    raise _closed(path, "no file appears")


def _closed(path: Path, reason: str) -> ValueError:
    return ValueError(
        f"nothing can be written in {path.parent} ({reason}): mend that or choose another folder"
    )


@contextmanager
def _held(lock: FileLock, path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        if lock.is_locked:
            # The system would do both: a disk that has gone is no reason to fail at the end.
            with suppress(OSError):
                # Before it is released: who waits for a file that is gone takes the new one.
                path.unlink(missing_ok=True)
                lock.release()
