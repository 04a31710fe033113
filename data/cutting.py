"""Where one text is cut into train, validation and test: at a line, else a word, else a character.

So that no split begins or ends inside a character, which no vocabulary but bytes could read.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from data.documents import SPLITS
from data.splits import fractions
from data.vocabularies.base import IS_SPACE

NEWLINE = 10
MOST_REACH = 1 << 20
"""A cut moves by so many bytes at most, and by a fifth of the text."""

Read = Callable[[int, int], bytes]
"""Bytes [start, end) of a text."""
Bounds = dict[str, tuple[int, int]]


def cut_file(path: Path, exact: bool = False) -> Bounds:
    """Where each split of a plain file begins and ends; see `cut_text`."""
    with path.open("rb") as file:

        def read(start: int, end: int) -> bytes:
            file.seek(start)
            return file.read(end - start)

        return cut_text(read, path.stat().st_size, exact)


def cut_text(read: Read, total: int, exact: bool = False) -> Bounds:
    """Where each split begins and ends when a text of `total` bytes is cut 90/5/5 %.

    A cut goes to the nearest beginning of a line, or of a word where no line is near, and never
    lies inside a character. The whole is for training where there are not three characters.

    read: gives the text's bytes; exact: keep the cuts where they are, but for characters.
    """
    bounds = fractions(total)
    if len(bounds) < 3:
        return bounds
    first, second = bounds["validation"]
    reach = 0 if exact else min(total // 5, MOST_REACH)
    second = moved(read, second, reach, 2, total - 1)
    first = moved(read, first, reach, 1, second - 1)
    if not 0 < first < second < total:
        return {"train": (0, total)}
    return {"train": (0, first), "validation": (first, second), "test": (second, total)}


def require_all_splits(bounds: Mapping[str, Bounds]) -> None:
    """ValueError if texts, by name, that were cut leave a split empty; none at all is no text."""
    splits = {split for each in bounds.values() for split in each}
    if splits and splits != set(SPLITS):
        raise ValueError(
            f"{' and '.join(sorted(bounds))} hold too little text for train, validation and test: "
            "give more text, or files or folders whose names say their split"
        )


def moved(read: Read, position: int, reach: int, low: int, high: int) -> int:
    """The best place for a cut near `position` and in [low, high].

    low, high: inclusive; where no character begins between them, the result may lie outside.
    """
    position = max(min(position, high), low)
    start, end = max(low, position - reach), min(high, position + reach)
    # Of each place from `start` on the byte before it.
    before = np.frombuffer(read(start - 1, end), dtype=np.uint8)
    for ends in (before == NEWLINE, IS_SPACE[before]) if reach and start <= end else ():
        places = start + np.flatnonzero(ends)
        if len(places):
            return int(places[np.abs(places - position).argmin()])
    begin, length = character_around(read, position)
    return begin if begin >= low else begin + length


def character_around(read: Read, position: int) -> tuple[int, int]:
    """Where the UTF-8 character begins that a position lies inside of, and its bytes; the position
    and 0 where it lies between two characters, or among bytes that are none.
    """
    start = max(position - 3, 0)
    near = read(start, position + 3)
    for back in range(1, position - start + 1):
        lead = near[position - start - back]
        length = 4 if lead >= 0xF0 else 3 if lead >= 0xE0 else 2 if lead >= 0xC0 else 1
        begin = position - start - back
        if length > back:
            try:
                near[begin : begin + length].decode()
            except UnicodeDecodeError:
                break
            return position - back, length
        if lead & 0xC0 != 0x80:
            break
    return position, 0
