"""Lists of checksums: what the texts of a corpus must be."""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data.common.files import hash_file
from data.corpora.local import local_path, naming_damage, open_packed
from data.documents import Expected

SHA256 = re.compile(r"[0-9a-fA-F]{64}")
NOT_LISTED = "is not in the list of checksums"
GIVE, GO_ON = "give the list of these books", ", or go on with --checksums-mismatch warn"


@dataclass(frozen=True)
class Checksums:
    """What a list says of texts by name.

    sha256: of the list itself; required: texts that differ are refused, not only told of.
    """

    path: Path
    sha256: str
    required: bool
    texts: dict[str, Expected] = field(repr=False)

    def look_up(self, name: str) -> Expected | None:
        """What is expected of a text; None for one that is not listed.

        ValueError for such a one if texts must be as listed.
        """
        expected = self.texts.get(name)
        if expected is None and self.required:
            raise ValueError(f"{name} {NOT_LISTED}, {self.path}: {GIVE}{GO_ON}")
        return expected

    def cover(self, names: list[str]) -> None:
        """ValueError unless all texts of a corpus are listed or, where that is enough, some."""
        missing = [name for name in names if name not in self.texts]
        listed = len(names) - len(missing)
        if not missing or (listed and not self.required):
            return
        some = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        if not listed:
            raise ValueError(f"{self.path} lists none of {len(names):,} books: {some}; {GIVE}")
        raise ValueError(
            f"{self.path} lists {listed:,} of {len(names):,} books and not {some}; {GIVE}{GO_ON}"
        )


def read_checksums(path: Path, required: bool = True) -> Checksums:
    """A list from a CSV file, perhaps packed, of name, ..., SHA-256 in each line.

    Where there are four columns or more, the last but one is the length in bytes if it is a number.
    A first line without a SHA-256 is a header. ValueError for any other line that is none of these,
    for a name with two checksums, and for a list of nothing.
    """
    path = local_path(str(path))
    if not path.is_file():
        raise ValueError(f"{path} is not there; checksums wants a CSV file of ID, ..., SHA-256")
    texts: dict[str, Expected] = {}
    for line, row in read_rows(path):
        name, last = row[0].strip(), row[-1].strip()
        if len(row) < 2 or not SHA256.fullmatch(last):
            if not texts and line == 1 and len(row) > 1:
                continue
            raise ValueError(f"{path}, line {line} is not ID, ..., SHA-256: mend it")
        size = row[-2].strip() if len(row) > 3 else ""
        expected = Expected(last.lower(), int(size) if size.isdecimal() else None, required)
        if texts.setdefault(name, expected) != expected:
            raise ValueError(f"{path}, line {line} gives {name} another checksum: leave one out")
    if not texts:
        raise ValueError(f"{path} holds no checksums; it must have lines of ID, ..., SHA-256")
    return Checksums(path, hash_file(path), required, texts)


def read_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file in UTF-8, perhaps packed, that are not blank, and the line each ends in.

    ValueError for a file that is not CSV: with a field of over 131,072 characters, for instance.
    """
    with naming_damage(path), open_packed(path) as packed:
        reader = csv.reader(io.TextIOWrapper(packed, "utf-8-sig", newline=""))
        try:
            for row in reader:
                if any(cell.strip() for cell in row):
                    yield reader.line_num, row
        except UnicodeDecodeError:
            raise ValueError(
                f"{path} is not valid UTF-8 after line {reader.line_num}: convert it"
            ) from None
        except csv.Error as error:
            raise ValueError(
                f"{path} is not CSV ({error}, line {reader.line_num}): mend that line"
            ) from None
