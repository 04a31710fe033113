"""PG-19: whole books published before 1919 (Rae et al. 2020, Compressive Transformers, section 4).

The metric divides the loss of a whole split by its published word count, whatever the tokens
(section 4.2).
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.corpora.local import existing
from data.documents import SPLITS, Document, Official, Part, Piece, Source, file_parts
from data.hub import HubName, hub_parts, pinned, stream
from data.records import Rows, parquet_parts
from data.splits import FULL_NAME, named_split

WANTED = (
    "a folder with train/ID.txt, validation/ID.txt, test/ID.txt and metadata.csv, or a folder of "
    "parquet files"
)
ON_HUB = HubName("emozilla/pg19")
# Words are the published denominators. A digest is SHA-256 over "ID SHA-256\n" of a split's books,
# sorted, with the books as DeepMind's bucket has them.
OFFICIAL = Official(
    words={"train": 1_973_136_207, "validation": 3_007_061, "test": 6_966_499},
    digests={
        "train": "ca589b16e5366391057c1f58a524267449b39e521a1c02b03f390447c358894d",
        "validation": "333e7299d1f33bf48eeb769c5ed09bcbcf67f2bec0d2f95bb8d160bbf066b35f",
        "test": "a0c1e13c9be2ce6e58198b31aed083da2fb507ed5b0ee860dc040a3ed5c854c7",
    },
)


@dataclass(frozen=True)
class BookRows(Rows):
    """A book a row, as parquet copies have it."""

    split: str
    checksums: Mapping[str, str]
    text: str = "text"
    columns: tuple[str, ...] = ("text", "short_book_title", "publication_date", "url")

    def document(self, row: Mapping[str, Any], name: str) -> Document:
        """Known by the number at the end of its address on Project Gutenberg."""
        number = str(row["url"] or name).rstrip("/").rpartition("/")[2]
        details = {"title": row["short_book_title"], "year": row["publication_date"]}
        return Document(self.split, number, details, self.checksums.get(number))


def open_pg19(source: str | None, hub: HubName | None, checksums: Path | None) -> Source:
    """A document a book, with title and year; sorted by number where books are files.

    checksums: what the books' SHA-256 must be; see `read_checksums`.
    """
    expected = {} if checksums is None else read_checksums(checksums)
    facts: dict[str, Any] = {}
    if hub is not None:
        hub = pinned(hub, WANTED)
        facts = hub.facts
        parts: list[Part] = [
            part
            for split, data in stream(hub, WANTED).items()
            if split in FULL_NAME
            for part in hub_parts(hub, split, data, BookRows(FULL_NAME[split], expected), WANTED)
        ]
    else:
        folder = existing(source, "pg19", WANTED)
        parts = [*book_files(folder, expected)] or parquet_books(folder, expected)
        if not parts:
            raise ValueError(f"{folder} holds no books; corpus pg19 wants {WANTED}")
    return Source("pg19", "word_perplexity", tuple(parts), facts, official=OFFICIAL)


def book_files(folder: Path, checksums: Mapping[str, str]) -> tuple[Part, ...]:
    """Parts of DeepMind's layout; none if there is no split with books."""
    metadata = read_metadata(folder / "metadata.csv")
    pieces = []
    for split in SPLITS:
        for path in sorted((folder / split).glob("*.txt"), key=lambda path: (len(path.stem), path)):
            number = path.stem
            document = Document(split, number, metadata.get(number, {}), checksums.get(number))
            pieces.append(Piece(path, 0, path.stat().st_size, document))
    return file_parts(pieces, cut=False)


def parquet_books(folder: Path, checksums: Mapping[str, str]) -> list[Part]:
    """Parts of parquet files whose paths name their splits."""
    parts: list[Part] = []
    for path in sorted(folder.rglob("*.parquet")) if folder.is_dir() else []:
        name = path.relative_to(folder).as_posix()
        if split := named_split(name):
            parts += parquet_parts(path, name, BookRows(split, checksums))
    return parts


def read_metadata(path: Path) -> dict[str, dict[str, Any]]:
    """Title and year by number, from rows of number, title, year, address without a header.

    Books that have no row keep only their number; so do all where there is no such file.
    """
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        try:
            return {
                number: {"title": title, "year": int(year)}
                for number, title, year, _ in csv.reader(file)
            }
        except ValueError as error:
            raise ValueError(f"{path} must have rows of ID, title, year, URL: {error}") from error


def read_checksums(path: Path) -> dict[str, str]:
    """SHA-256 by number, from the first and last column of a CSV file (a header does no harm)."""
    if not path.is_file():
        raise ValueError(f"{path} is not there; checksums wants a CSV file of ID, ..., SHA-256")
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file) if row]
    if any(len(row) < 2 for row in rows):
        raise ValueError(f"{path} must have rows of ID, ..., SHA-256")
    return {row[0]: row[-1] for row in rows}
