"""What the machine has room for: asked before anything is allocated, not found out by running out.

An allocation that is too large does not fail on Linux: the process is killed without a word when it
touches the memory.
"""

import os
from pathlib import Path

CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where Linux says how much a container may use, version 2 and 1."""


def host_memory() -> int:
    """Bytes of memory that a process can have at most: the machine's, or its container's."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in CGROUP_LIMITS:
        try:
            total = min(total, int(path.read_text()))
        except (OSError, ValueError):
            # No container, or one without a limit ("max").
            continue
    return total


def require_memory(needed: int, what: str, mend: str, room: int | None = None) -> None:
    """See that something fits into memory before it is made.

    Args:
        needed: bytes, a lower bound; computed in whole numbers, so any size may be asked.
        what: what is to be made, such as "--samples 1000000000".
        mend: what the user can do; ends the sentence.
        room: bytes there are, such as a GPU's; none: the host's.

    Raises:
        ValueError: it cannot fit.
    """
    room = host_memory() if room is None else room
    if needed > room:
        raise ValueError(
            f"{what} takes at least {in_bytes(needed)} of memory, but there are {in_bytes(room)} "
            f"here: {mend}"
        )


def in_bytes(count: int) -> str:
    """A number of bytes as it is read, such as "1.5 GB"."""
    for exponent, unit in ((12, "TB"), (9, "GB"), (6, "MB"), (3, "kB")):
        if count >= 10**exponent:
            # Whole numbers, because a float ends at 10^308.
            return f"{count * 10 // 10**exponent / 10:,.1f} {unit}" if count < 10**21 else "many TB"
    return f"{count} bytes"
