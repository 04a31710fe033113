"""Enwik8: the first 100,000,000 bytes of an English Wikipedia dump, cut 90/5/5 MB by custom."""

from collections.abc import Iterator
from pathlib import Path

from data.common.files import hash_file
from data.corpora.hub import HubName, pinned, stream, texts_of
from data.corpora.local import Listing, existing, unpacked, write_once
from data.documents import Document, Piece, Source, file_parts
from data.splits import cut_file, fractions

FULL_BYTES = 100_000_000
FULL_SHA1 = "57b8363b814821dc9d47aa4d41f58733519076b2"
WANTED = "the file enwik8 as it is or as .zip, .gz, .xz, .bz2 or .zst"
# The data set's main branch needs a loading script; the hub's own conversion does not.
ON_HUB = HubName("LTCB/enwik8", revision="refs/convert/parquet")
HUB_FILE = "enwik8-raw/train/0000.parquet"


def open_enwik8(source: str | None, hub: HubName | None, prefix: bool, work: Path) -> Source:
    """One document a split: 90, 5 and 5 million bytes, or 90/5/5 % of a shorter beginning.

    ValueError for a file that is not Enwik8 and was not announced as a beginning of it.
    """
    facts = {}
    if hub is None:
        given = find_files(source).paths[0]
        path = unpacked(given, work)
    else:
        hub = pinned(hub, WANTED)
        facts = hub.facts
        given = path = write_once(work / "enwik8", hub_blocks(hub))
    size = path.stat().st_size
    if size == 0:
        raise ValueError(f"{given} is empty; corpus enwik8 wants {WANTED}")
    if prefix and size >= FULL_BYTES:
        raise ValueError(f"{given} has {size:,} bytes, so it is no prefix: leave prefix out")
    if not prefix:
        check_full(given, path, size)
    # The benchmark's cuts are where they are; those of a beginning spare characters.
    bounds = cut_file(path, exact=True) if prefix else fractions(size)
    pieces = [
        Piece(path, start, end, Document(split, f"enwik8[{start}:{end}]"))
        for split, (start, end) in bounds.items()
    ]
    name = "enwik8-prefix" if prefix else "enwik8"
    return Source(name, "bits_per_byte", file_parts(pieces), facts)


def find_files(source: str | None) -> Listing:
    """The file that a source names."""
    given = existing(source, "enwik8", WANTED)
    if given.is_dir():
        raise ValueError(f"{given} is a folder; corpus enwik8 wants {WANTED}")
    return Listing(given.parent, [given])


def check_full(given: Path, path: Path, size: int) -> None:
    """ValueError unless length and SHA-1 are those of Enwik8."""
    if size != FULL_BYTES:
        raise ValueError(
            f"{given} has {size:,} bytes and Enwik8 has {FULL_BYTES:,}: get the whole file, or "
            "say prefix: true to use a beginning of it under the name enwik8-prefix"
        )
    if hash_file(path, "sha1") != FULL_SHA1:
        raise ValueError(f"{given} is not Enwik8: its SHA-1 is not {FULL_SHA1}; get it again")


def hub_blocks(hub: HubName) -> Iterator[bytes]:
    """The hub's copy, one row of text."""
    data = stream(hub, WANTED, split="train", data_files={"train": HUB_FILE})
    for text in texts_of(hub, data):
        yield (text or "").encode()
