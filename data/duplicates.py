"""Documents whose very text is there twice: in training and held out, or twice in training.

A text is known by its SHA-256. Workers hash what a part holds of each document; one that runs over
several parts is hashed again as a whole, but only if another has as many bytes.
"""

import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, JsonValue

from data.common.integrity import write_sealed
from data.common.progress import Progress
from data.common.say import say, warn
from data.common.schema import Count, Record, read_record
from data.documents import Block, DerivedPart, Document, Part, Source
from data.manifest import DuplicateFacts, SplitName
from data.pool import work_in_pool

DIGEST = 16
"""Bytes of a hash that are kept."""
EXAMPLES = 5
ANEW = "call again, and the build begins anew"


class Run(Record):
    """What a part holds of a document."""

    split: SplitName
    begins: bool
    details: dict[str, JsonValue]
    """Name, and what else is known of the document."""
    bytes: Count
    text: Annotated[str, Field(pattern=f"^[0-9a-f]{{{2 * DIGEST}}}$")]
    """Hash of what the part holds; see text_hash."""

    @property
    def name(self) -> str:
        """The document's name."""
        return str(self.details["name"])


class LookedAt(Record):
    """What a part holds, as it was found before it was encoded."""

    runs: list[Run]


Runs = Callable[[int], Sequence[Run]]
"""The runs of a part, by its number."""


@dataclass(frozen=True)
class Duplicates:
    """Documents of training that are there twice.

    facts: how many, for the manifest; places: number of the part and of its run, for each run of a
    document of training that is also held out.
    """

    facts: DuplicateFacts
    places: list[tuple[int, int]]


def text_hash(digest: Any) -> str:
    """What is kept of the SHA-256 of a text."""
    return str(digest.digest()[:DIGEST].hex())


def find_duplicates(source: Source, runs: Runs) -> Duplicates:
    """Compare all documents of a corpus; empty ones do not count."""
    size, count, trained = array("q"), array("q"), array("b")
    part, run = array("q"), array("q")
    digests = bytearray()
    for index in range(len(source.parts)):
        for number, each in enumerate(runs(index)):
            if each.begins or not size:
                size.append(0)
                count.append(0)
                part.append(index)
                run.append(number)
                trained.append(each.split == "train")
                digests += bytes.fromhex(each.text)
            size[-1] += each.bytes
            count[-1] += 1
    if not size:
        return Duplicates(DuplicateFacts(held_out=0, repeated=0), [])
    keys = np.zeros(len(size), dtype=[("size", "<i8"), ("first", "<u8"), ("second", "<u8")])
    keys["size"] = size
    pairs = np.frombuffer(bytes(digests), dtype="<u8").reshape(-1, 2)
    keys["first"], keys["second"] = pairs[:, 0], pairs[:, 1]
    count_D = np.array(count)
    places = Places(part, run, count, runs)
    _, alike, times = np.unique(keys["size"], return_inverse=True, return_counts=True)
    for document in np.flatnonzero((count_D > 1) & (times[alike] > 1)).tolist():
        whole = digest_over_parts(source, places.of(document))
        keys["first"][document], keys["second"][document] = np.frombuffer(whole, dtype="<u8")
    return compare(keys, np.array(trained, dtype=bool), places)


def hash_of_texts(runs: Iterable[Run]) -> str:
    """SHA-256 over all that was read: of names, splits and hashes of texts."""
    digest = sha256()
    for run in runs:
        digest.update(json.dumps([run.split, run.name, run.text]).encode() + b"\n")
    return digest.hexdigest()


def in_runs(part: Part) -> Iterator[tuple[int, Block]]:
    """The blocks of a part, each with the number of its run: a document, or the part's own piece
    of one that begins before.
    """
    number = -1
    for block in part.read():
        number += block.begins or number < 0
        yield number, block


def digest_over_parts(source: Source, runs: Iterable[tuple[int, int]]) -> bytes:
    """The hash of a document from all its runs, each the number of a part and of a run in it."""
    digest = sha256()
    for part, run in runs:
        for number, block in in_runs(source.parts[part]):
            if number == run:
                digest.update(block.data)
    return digest.digest()[:DIGEST]


@dataclass(frozen=True)
class Places:
    """Where each document begins, and in how many runs it lies."""

    part: Sequence[int]
    run: Sequence[int]
    count: Sequence[int]
    runs: Runs

    def of(self, document: int) -> Iterator[tuple[int, int]]:
        """Part and number of each run of a document; those after the first open their parts."""
        yield self.part[document], self.run[document]
        for further in range(1, self.count[document]):
            yield self.part[document] + further, 0

    def name(self, document: int) -> str:
        """The document's name."""
        return self.runs(self.part[document])[self.run[document]].name


def compare(keys: np.ndarray, train_D: np.ndarray, places: Places) -> Duplicates:
    """What is there twice among documents of these keys, of which some are for training."""
    there_D = keys["size"] > 0
    _, text_D = np.unique(keys, return_inverse=True)
    held_T = np.zeros(len(keys), dtype=bool)
    held_T[text_D[there_D & ~train_D]] = True
    both_D = there_D & train_D & held_T[text_D]
    trained = text_D[there_D & train_D]
    examples = []
    for document in np.flatnonzero(both_D)[:EXAMPLES].tolist():
        twin = np.flatnonzero((text_D == text_D[document]) & ~train_D)[0]
        examples.append([places.name(document), places.name(int(twin))])
    facts = DuplicateFacts(
        held_out=int(both_D.sum()),
        repeated=len(trained) - len(np.unique(trained)),
        examples=examples,
    )
    found = [place for document in np.flatnonzero(both_D).tolist() for place in places.of(document)]
    return Duplicates(facts, found)


def tell(facts: DuplicateFacts) -> None:
    """Say on stderr what is there twice."""
    if facts.dropped:
        say(f"{facts.dropped:,} documents that are also held out were left out of training")
    if facts.held_out:
        name, twin = facts.examples[0]
        warn(
            f"{facts.held_out:,} documents of training are also in validation or test, such as "
            f"{name} ({twin}): --drop-duplicates leaves them out of training"
        )
    if facts.repeated:
        say(f"{facts.repeated:,} documents of training repeat another one of training")


@dataclass(frozen=True)
class ThinnedPart(DerivedPart):
    """A part without some of its runs, by number."""

    without: frozenset[int]

    def read(self) -> Iterator[Block]:
        """The blocks that are left."""
        for number, block in in_runs(self.part):
            if number not in self.without:
                yield block

    def lines_before(self, document: Document) -> int:
        """As in the part."""
        return self.part.lines_before(document)


def without_duplicates(source: Source, folder: Path, workers: int) -> tuple[Source, DuplicateFacts]:
    """A corpus without the documents of training that are also held out, and what these are.

    folder: keeps what was seen of each part, so that an interrupted build need not look again.
    ValueError if training is left without text.
    """
    folder.mkdir(exist_ok=True)
    todo = [(i, part) for i, part in enumerate(source.parts) if not seen(folder, i).exists()]
    with Progress("compare documents", len(todo), "part") as progress:
        for _ in work_in_pool(workers, look_at, folder, todo):
            progress.update()

    def runs(index: int) -> Sequence[Run]:
        return read_record(LookedAt, seen(folder, index), ANEW).runs

    found = find_duplicates(source, runs)
    without: dict[int, set[int]] = {}
    for index, number in found.places:
        without.setdefault(index, set()).add(number)
    left = any(
        run.split == "train" and run.bytes and number not in without.get(index, ())
        for index in range(len(source.parts))
        for number, run in enumerate(runs(index))
    )
    if found.places and not left:
        raise ValueError(
            "every document of training is also in validation or test: give other text to train on"
        )
    parts: Iterable[Part] = (
        ThinnedPart(part, frozenset(without[index])) if index in without else part
        for index, part in enumerate(source.parts)
    )
    return replace(source, parts=tuple(parts)), found.facts


def seen(folder: Path, index: int) -> Path:
    """The file that says what documents a part holds."""
    return folder / f"{index:06d}.json"


def look_at(folder: Path, index: int, part: Part) -> None:
    """Write down what documents a part holds."""
    found: list[dict[str, Any]] = []
    digests: list[Any] = []
    for number, block in in_runs(part):
        if number == len(found):
            document = block.document
            run = {"split": document.split, "begins": block.begins, "bytes": 0}
            found.append(run | {"details": {"name": document.name}})
            digests.append(sha256())
        digests[-1].update(block.data)
        found[-1]["bytes"] += len(block.data)
    runs = [run | {"text": text_hash(digest)} for run, digest in zip(found, digests, strict=True)]
    write_sealed(seen(folder, index), {"runs": runs})
