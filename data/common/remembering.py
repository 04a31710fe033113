"""What is found in a large file, remembered on this machine for as long as the file stays as it is.

Hashing 100 GB takes minutes, so it is done once: a small file in the user's cache folder knows
path, size, times of change and inode. Without a cache folder that can be written, the large file
is looked at each time.
"""

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock
from pydantic import JsonValue

from data.common.files import hash_json
from data.common.integrity import write_sealed
from data.common.schema import Record, as_record, read_record

Facts = TypeVar("Facts", bound=Record)

SMALL = 32 << 20
"""Bytes below which a file is looked at each time: that takes less than a twentieth of a second."""
SETTLED_S = 2.0
"""A file that changed later than this ago may change again without another time."""


class Stamp(Record):
    """What tells that a file is the one that was looked at."""

    path: str
    machine: str
    bytes: int
    modified: int
    """Nanoseconds."""
    changed: int
    """Nanoseconds; unlike `modified` it cannot be set."""
    inode: int
    device: int


class Entry(Record):
    """A file of the cache."""

    stamp: Stamp
    facts: dict[str, JsonValue]


def remembered(path: Path, kind: type[Facts], look: Callable[[], Facts]) -> Facts:
    """What `look` finds in a file, from the cache where that knows it.

    Several processes that ask at once wait for the first of them.

    Args:
        path: the file.
        kind: what `look` returns.
        look: reads the file; a ValueError of it is passed on and not remembered.
    """
    stamp = stamp_of(path)
    if stamp.bytes < SMALL:
        return look()
    entry = entry_of(stamp, kind)
    known = recalled(entry, stamp, kind)
    if known is not None:
        return known
    with one_at_a_time(entry):
        known = recalled(entry, stamp, kind)
        if known is None:
            known = look()
            if stamp_of(path) == stamp and time.time() - stamp.changed / 1e9 > SETTLED_S:
                remember(entry, Entry(stamp=stamp, facts=known.model_dump()))
    return known


def stamp_of(path: Path) -> Stamp:
    """The present state of a file."""
    state = path.stat()
    return Stamp(
        path=str(path.resolve()),
        machine=platform.node(),
        bytes=state.st_size,
        modified=state.st_mtime_ns,
        changed=state.st_ctime_ns,
        inode=state.st_ino,
        device=state.st_dev,
    )


def entry_of(stamp: Stamp, kind: type[Facts]) -> Path | None:
    """Where the cache keeps what is known of a file; None without a folder that can be written."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    try:
        base = Path(given) if given.startswith("/") else Path.home() / ".cache"
        folder = base / "longrange-lm" / "checked"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder / f"{hash_json([stamp.path, stamp.machine, kind.__name__])[:32]}.json"


def recalled(entry: Path | None, stamp: Stamp, kind: type[Facts]) -> Facts | None:
    """What the cache says of a file in just this state."""
    if entry is None or not entry.is_file():
        return None
    try:
        found = read_record(Entry, entry, "it is made anew")
        return as_record(kind, found.facts) if found.stamp == stamp else None
    except (OSError, ValueError):
        return None


def remember(entry: Path | None, value: Entry) -> None:
    """Write into the cache if it can be written; a full disk only costs the next time."""
    if entry is not None:
        with suppress(OSError):
            write_sealed(entry, value.model_dump())


@contextmanager
def one_at_a_time(entry: Path | None) -> Iterator[None]:
    """Let one process of this machine look, where the file system knows locks."""
    if entry is None:
        yield
        return
    lock = FileLock(entry.with_suffix(".lock"))
    try:
        lock.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        lock.release()
