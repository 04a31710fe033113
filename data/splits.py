"""Which split a document is in, when no official list says so."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from data.documents import SPLITS

SPLIT_NAME = re.compile(r"(train|validation|valid|val|test)(?![a-z])")
FULL_NAME = {split: split for split in SPLITS} | {"valid": "validation", "val": "validation"}


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
