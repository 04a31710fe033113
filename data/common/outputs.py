"""Where results go: looked at before the work, replaced whole after it.

A program that takes `--out` or `--json` calls `check_output` first, so that a folder that lacks or
a path that is a folder is found before hours of work, and writes through `writing` at the end.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.common.files import atomic_path


def check_output(path: Path, *inputs: Path) -> None:
    """Find out before the work whether its result can be written to `path`.

    Args:
        path: a file that may be there, a device, a FIFO, or a link to one of these.
        inputs: files that are read and must not be replaced.

    Raises:
        ValueError: the folder is not there, `path` is a folder or one of `inputs`, or writing
            there is not allowed.
    """
    target = resolved(path)
    if target.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it")
    if any(source.exists() and target.exists() and target.samefile(source) for source in inputs):
        raise ValueError(f"{path} is what is read: give the result another name")
    if in_place(target):
        allowed = os.access(target, os.W_OK)
    else:
        if not target.parent.is_dir():
            raise ValueError(f"{path} lies in a folder that is not there: make it first")
        allowed = os.access(target.parent, os.W_OK)
    if not allowed:
        raise ValueError(f"{path} may not be written: choose another place")
    if target == Path("/dev/full"):
        raise ValueError(f"{path} has no room: choose another place")


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield the path to write a result to.

    A file appears whole or not at all, with the permissions of the umask; the file that a link
    names is replaced, not the link; devices and FIFOs are written where they are.
    """
    target = resolved(path)
    if in_place(target):
        yield target
        return
    with atomic_path(target) as temporary:
        yield temporary


def resolved(path: Path) -> Path:
    """What a path names in the end."""
    try:
        return path.expanduser().resolve()
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path} cannot be followed ({error})") from None


def in_place(target: Path) -> bool:
    """Whether something is there that must not be replaced: a device, a FIFO or a socket."""
    try:
        mode = target.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
