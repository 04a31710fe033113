"""Which split a document is in, where a single text is cut, and that no split comes out empty.

A cut goes to a line, else a word, else a character. A hash of names leaves validation or test
without a document in four of five corpora of ten, so documents are then drawn again, or cut.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from data.documents import SPLITS, Block, DerivedPart, Part, Source
from data.tokenizers.tokenizer import IS_SPACE

SPLIT_NAME = re.compile(r"(train|validation|valid|val|test)(?![a-z])")
FULL_NAME = {split: split for split in SPLITS} | {"valid": "validation", "val": "validation"}
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


def hashed_share(name: str, salt: str = "") -> float:
    """A number in [0, 1) that depends on a name and on nothing else."""
    digest = hashlib.sha256((salt + name).encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def hashed_split(name: str, salt: str = "") -> str:
    """Split of a document by a hash of its name: 90 % train, 5 % validation, 5 % test."""
    share = hashed_share(name, salt)
    return "train" if share < 0.9 else "validation" if share < 0.95 else "test"


def named_split(name: str) -> str | None:
    """Split that a path names, such as `train/a.txt`, `valid.txt` or `data/test-0.parquet`."""
    for part in Path(name).parts:
        if found := SPLIT_NAME.match(part):
            return FULL_NAME[found[1]]
    return None


def names_splits(names: Sequence[str]) -> bool:
    """Whether paths say what is for training, and so must all say their split."""
    return any(named_split(name) == "train" for name in names)


def assign_splits(names: Sequence[str]) -> list[str]:
    """Split of each document: as their paths say, else (three at least) by hash.

    Where the hash leaves a split empty, as it does with few documents, the two names with the
    greatest hashes become validation and test. ValueError when only some paths name a split.
    """
    if names_splits(names):
        named = [named_split(name) for name in names]
        for name, split in zip(names, named, strict=True):
            if split is None:
                raise ValueError(
                    f"{name} is in none of the splits train, validation and test: move it into "
                    "one of these folders, or out of the source"
                )
        return [split for split in named if split]
    splits = [hashed_split(name) for name in names]
    return splits if set(splits) == set(SPLITS) else spread(names)


def spread(names: Sequence[str]) -> list[str]:
    """Splits of three documents or more, of which the hash leaves one empty: all are for training
    but the two whose names have the greatest hashes.
    """
    order = sorted(range(len(names)), key=lambda i: (hashed_share(names[i]), names[i]))
    splits = ["train"] * len(names)
    splits[order[-2]], splits[order[-1]] = "validation", "test"
    return splits


def fractions(total: int) -> dict[str, tuple[int, int]]:
    """Where each split begins and ends when `total` units are cut 90/5/5 %.

    None is empty where there are three units; splits that would be are left out.
    """
    tail = max(total * 5 // 100, int(total >= len(SPLITS)))
    bounds = {
        "train": (0, total - 2 * tail),
        "validation": (total - 2 * tail, total - tail),
        "test": (total - tail, total),
    }
    return {split: (start, end) for split, (start, end) in bounds.items() if start < end}


@dataclass(frozen=True)
class MovedPart(DerivedPart):
    """A part whose documents are in other splits, by name."""

    splits: Mapping[str, str]

    def read(self) -> Iterator[Block]:
        """The part's blocks."""
        for block in self.part.read():
            document = block.document
            split = self.splits.get(document.name, "train")
            yield replace(block, document=replace(document, split=split))


@dataclass(frozen=True)
class CutPart(DerivedPart):
    """A part whose documents are cut, by name; `position` is where in its document it begins."""

    bounds: Mapping[str, Bounds]
    position: int

    def read(self) -> Iterator[Block]:
        """The part's blocks, each of one split."""
        position = self.position
        for block in self.part.read():
            position = 0 if block.begins else position
            end = position + len(block.data)
            bounds = self.bounds.get(block.document.name)
            if bounds is None:
                yield block
                continue
            edges = sorted({position, end, *(b for b, _ in bounds.values() if position < b < end)})
            for start, stop in pairwise(edges):
                split, (first, last) = next(
                    item for item in bounds.items() if item[1][0] <= start < item[1][1]
                )
                name = f"{block.document.name}[{first}:{last}]"
                document = replace(block.document, split=split, name=name)
                data = block.data[start - position : stop - position]
                yield Block(document, data, begins=start == first)
            position = end


def with_all_splits(source: Source) -> Source:
    """The same corpus, with text in every split if its splits were drawn by hash.

    Where one is empty, the documents are dealt again as `spread` does; one or two documents are
    each cut 90/5/5 %. Reads as far as to the first text of the last split. ValueError when there
    is too little text to cut; named splits are what they are.
    """
    if not source.drawn:
        return source
    seen: set[str] = set()
    names: dict[str, None] = {}
    for part in source.parts:
        for document, there in part.texts():
            if there:
                seen.add(document.split)
                names[document.name] = None
            if seen == set(SPLITS):
                return source
    if not names:
        return source
    if len(names) < len(SPLITS):
        return with_cuts(source, set(names))
    splits = dict(zip(names, spread(list(names)), strict=True))
    return replace(source, parts=tuple(MovedPart(part, splits) for part in source.parts))


def with_cuts(source: Source, names: set[str]) -> Source:
    """The documents of these names, each cut in three; ValueError if there is too little text."""
    bounds: dict[str, Bounds] = {}
    parts: list[Part] = []
    held: tuple[str, list[bytes]] = "", []

    def close() -> None:
        name, text = held[0], b"".join(held[1])
        if name in names:
            bounds[name] = cut_text(lambda start, end: text[start:end], len(text))

    for part in source.parts:
        parts.append(CutPart(part, bounds, sum(map(len, held[1]))))
        for block in part.read():
            if block.begins:
                close()
                held = block.document.name, []
            held[1].append(block.data)
    close()
    require_all_splits(bounds)
    return replace(source, parts=tuple(parts))
