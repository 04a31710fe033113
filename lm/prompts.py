"""Texts that are given to a model to continue: read from files, and looked at."""

import os
import stat
from pathlib import Path

from data.common.resources import require_memory
from data.common.say import warn
from data.decoding import complaint, is_text, refuse_wide


def content(path: Path) -> bytes:
    """What a file or a pipe holds; ValueError for a device, which may have no end, and for a file
    whose tokens would not fit into memory.
    """
    found = path.stat()
    endless = stat.S_ISCHR(found.st_mode) and path.resolve() != Path(os.devnull)
    if stat.S_ISBLK(found.st_mode) or (endless and not _is_terminal(path)):
        raise ValueError(f"{path} is a device: give a file that holds the text")
    require_memory(9 * found.st_size, f"the text in {path}")
    return path.read_bytes()


def _is_terminal(path: Path) -> bool:
    """Whether a device is a terminal, where somebody may type a text."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        return os.isatty(descriptor)
    finally:
        os.close(descriptor)


def look_at(text: bytes, name: str) -> None:
    """See that a text is one. ValueError for UTF-16 and the like; bytes that are not UTF-8 are
    warned of, because a vocabulary of bytes reads them as they are.
    """
    refuse_wide(name, text, begins=True)
    if not is_text(text):
        warn(f"{name} {complaint(text)}; it is read as its bytes")
