"""PG-19: whole books published before 1919 (Rae et al. 2020, Compressive Transformers, section 4).

The metric divides the loss of a whole split by its published word count, whatever the tokens
(section 4.2).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.corpora.checksums import NOT_LISTED, Checksums, read_rows
from data.corpora.hub import HubName, hub_parts, pinned, stream
from data.corpora.local import OPENERS, Listing, ending, existing, list_folder, unpacked
from data.documents import SPLITS, Document, Official, Part, Piece, Source, file_parts
from data.records import Rows, parquet_parts
from data.splits import FULL_NAME, named_split

WANTED = (
    "a folder with train/ID.txt, validation/ID.txt, test/ID.txt and metadata.csv, or a folder of "
    "parquet files"
)
ON_HUB = HubName("emozilla/pg19")
METADATA = "metadata.csv"
# How the names of books end.
BOOKS = (".txt", *(f".txt{packing}" for packing in OPENERS))
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
    checksums: Checksums | None
    text: str = "text"
    columns: tuple[str, ...] = ("text", "short_book_title", "publication_date", "url")

    def document(self, row: Mapping[str, Any], name: str) -> Document:
        """Known by the number at the end of its address on Project Gutenberg."""
        number = str(row["url"] or name).rstrip("/").rpartition("/")[2]
        title, year = row["short_book_title"], row["publication_date"]
        details = {
            "title": None if title is None else str(title),
            "year": year if isinstance(year, int | None) else str(year),
        }
        return book(self.split, number, details, self.checksums)


def book(split: str, number: str, details: dict[str, Any], checksums: Checksums | None) -> Document:
    """A book with what a list says of it; ValueError if it must be listed and is not."""
    expected = checksums.look_up(number) if checksums else None
    if checksums and expected is None:
        details = details | {"differs": NOT_LISTED}
    return Document(split, number, details, expected)


def open_pg19(
    source: str | None, hub: HubName | None, checksums: Checksums | None, work: Path
) -> Source:
    """A document a book, with title and year; sorted by number where books are files.

    checksums: what the books must be; packed books are unpacked into `work`.
    """
    facts: dict[str, Any] = {}
    if checksums is not None:
        facts["checksums"] = {"list": checksums.sha256, "required": checksums.required}
    if hub is not None:
        hub = pinned(hub, WANTED)
        facts |= hub.facts
        parts: list[Part] = [
            part
            for split, data in stream(hub, WANTED).items()
            if split in FULL_NAME
            for part in hub_parts(hub, split, data, BookRows(FULL_NAME[split], checksums), WANTED)
        ]
    else:
        found = find_files(source)
        parts = [*book_files(found, checksums, work)] or parquet_books(found, checksums)
        if not parts:
            raise ValueError(f"{source} holds no books{found.only()}; corpus pg19 wants {WANTED}")
        found.tell([path.name for path in found.paths])
    return Source("pg19", "word_perplexity", tuple(parts), facts, official=OFFICIAL)


def find_files(source: str | None) -> Listing:
    """What there is in a folder of books: of the layouts that are read, the first that has any."""
    folder = existing(source, "pg19", WANTED)
    if not folder.is_dir():
        raise ValueError(f"{source} is a file: unpack it; corpus pg19 wants {WANTED}")
    found = list_folder(folder, lambda name: ending(name) in (*BOOKS, ".parquet", ".csv"))
    places = [path.relative_to(folder) for path in found.paths]
    tables = not any(map(is_book, places))
    for place in places:
        if not (is_table(place) if tables else is_book(place) or place.as_posix() == METADATA):
            found.paths.remove(folder / place)
            found.passed[ending(place.name)] += 1
    return found


def is_book(place: Path) -> bool:
    """Whether a path below the folder is that of a book in DeepMind's layout."""
    return len(place.parts) == 2 and place.parts[0] in SPLITS and ending(place.name) in BOOKS


def is_table(place: Path) -> bool:
    """Whether it is that of a parquet file which says its split."""
    return place.suffix.lower() == ".parquet" and named_split(place.as_posix()) is not None


def book_files(found: Listing, checksums: Checksums | None, work: Path) -> tuple[Part, ...]:
    """Parts of DeepMind's layout; none if there is no split with books."""
    metadata = read_metadata(found.root / METADATA)
    paths: dict[tuple[int, int, str], Path] = {}
    for path in found.paths:
        if ending(path.name) in BOOKS:
            number = path.name[: -len(ending(path.name))]
            key = SPLITS.index(path.parent.name), len(number), number
            if key in paths:
                raise ValueError(f"{path} and {paths[key]} are one book: leave one of them out")
            paths[key] = path
    if checksums is not None and paths:
        checksums.cover([number for _, _, number in sorted(paths)])
    pieces = []
    for (split, _, number), path in sorted(paths.items()):
        document = book(SPLITS[split], number, metadata.get(number, {}), checksums)
        plain = unpacked(path, work)
        pieces.append(Piece(plain, 0, plain.stat().st_size, document))
    return file_parts(pieces, cut=False)


def parquet_books(found: Listing, checksums: Checksums | None) -> list[Part]:
    """Parts of parquet files whose paths name their splits."""
    names = [path.relative_to(found.root).as_posix() for path in found.paths]
    return [
        part
        for path, name in zip(found.paths, names, strict=True)
        for part in parquet_parts(path, name, BookRows(str(named_split(name)), checksums))
    ]


def read_metadata(path: Path) -> dict[str, dict[str, Any]]:
    """Title and year by number, from rows of number, title, year, address; a header does no harm.

    Books that have no row keep only their number; so do all where there is no such file. A year may
    be left empty. ValueError names a line that is none of this.
    """
    if not path.is_file():
        return {}
    known: dict[str, dict[str, Any]] = {}
    for line, row in read_rows(path):
        number, title, year = (*(cell.strip() for cell in row), "", "", "")[:3]
        if len(row) >= 3 and not year:
            known[number] = {"title": title}
        elif len(row) >= 3 and year.isdecimal():
            known[number] = {"title": title, "year": int(year)}
        elif line > 1 or len(row) < 3 or number.isdecimal():
            raise ValueError(f"{path}, line {line} is not ID, title, year, URL: mend it")
    return known
