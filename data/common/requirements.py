"""What a program needs of the machine: room, asked before it is taken, and optional packages."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Files that say how much memory a container may use, in its two versions."""
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB")


@contextmanager
def extra(name: str, what: str) -> Iterator[None]:
    """Import inside of this what belongs to an extra of pyproject.toml.

    Args:
        name: the extra.
        what: the program or setting that asks for it.

    Raises:
        ValueError: a package is missing or cannot be imported; says how to install it.
    """
    try:
        yield
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name
        reason = f"the package {error.name}" if missing else f"a package that works ({error})"
        raise ValueError(f"{what} needs {reason}: pip install 'longrange-lm[{name}]'") from error


def require_memory(needed: int, what: str, available: int | None = None) -> None:
    """Refuse what this machine could never hold, before anything is allocated.

    Args:
        needed: bytes, at least.
        what: what needs them and which option makes it smaller; begins the sentence.
        available: bytes that there are; none: the memory of this machine or container.

    Raises:
        ValueError: there are fewer.
    """
    there = machine_memory() if available is None else available
    if needed > there:
        raise ValueError(
            f"{what} needs at least {in_bytes(needed)} of memory, and there are {in_bytes(there)}"
        )


def machine_memory() -> int:
    """Bytes of memory of this machine, or of the container that it is."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in LIMITS:
        try:
            there = min(there, int(Path(limit).read_text()))
        except (OSError, ValueError):
            # No such version, or no limit ("max").
            continue
    return there


def in_bytes(number: int) -> str:
    """A number of bytes as people read it, however large."""
    power = min((max(number, 1).bit_length() - 1) // 10, len(UNITS) - 1)
    if not power:
        return f"{number} bytes"
    scaled = number * 10 // (1 << 10 * power)
    return f"{scaled // 10:,}.{scaled % 10} {UNITS[power]}" if scaled < 10**9 else "over 10^8 PiB"
