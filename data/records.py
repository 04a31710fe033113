"""Parts whose documents are records: lines of JSON, rows of parquet, rows of a hub data set.

A record is read whole, so its text must fit in memory, and reading parquet takes about three times
its largest row group; plain text files have no such limits.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.documents import BLOCK_BYTES, PART_BYTES, Block, Document, Part
from data.splits import hashed_split

RECORD_LIMIT = 256 << 20
# Rows are decoded in batches of about this many bytes.
BATCH_BYTES = 4 << 20


class Rows(ABC):
    """How a record becomes a document; picklable."""

    columns: tuple[str, ...]
    text: str

    @abstractmethod
    def document(self, row: Mapping[str, Any], name: str) -> Document:
        """The document of a row; `name` says where the row is."""

    def blocks(self, row: Mapping[str, Any], name: str) -> Iterator[Block]:
        """The row's text; ValueError for a row without text or with too much of it."""
        text = row.get(self.text)
        try:
            data = text.encode()  # type: ignore[union-attr]
        except AttributeError:
            known = ", ".join(row)
            raise ValueError(
                f"{name} has no text in column {self.text!r}; its columns are {known}"
            ) from None
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} is not valid Unicode: {error.reason}") from error
        if len(data) > RECORD_LIMIT:
            raise ValueError(
                f"{name} has {len(data):,} bytes and a record may have {RECORD_LIMIT:,}: write "
                "long documents as .txt files, which are read piece by piece"
            )
        document = self.document(row, name)
        for start in range(0, max(len(data), 1), BLOCK_BYTES):
            yield Block(document, data[start : start + BLOCK_BYTES], start == 0)


@dataclass(frozen=True)
class TextRows(Rows):
    """A document a row, in a fixed split or (None) in one by the hash of its name."""

    text: str
    split: str | None

    @property
    def columns(self) -> tuple[str, ...]:  # type: ignore[override]
        """The column of the text."""
        return (self.text,)

    def document(self, row: Mapping[str, Any], name: str) -> Document:  # noqa: ARG002
        """A document known by its place alone."""
        return Document(self.split or hashed_split(name), name)


@dataclass(frozen=True)
class JsonLinesPart(Part):
    """Bytes [start, end) of a .jsonl file, which are whole lines; `name` is the file's."""

    path: Path
    name: str
    start: int
    end: int
    rows: Rows

    @property
    def size(self) -> int:
        """Bytes of JSON, somewhat more than their text."""
        return self.end - self.start

    def read(self) -> Iterator[Block]:
        """Yield each line's document; ValueError for one that is not blank nor a JSON object."""
        position = self.start
        with self.path.open("rb") as file:
            file.seek(position)
            while position < self.end:
                name = f"{self.name}@{position}"
                line = file.readline(RECORD_LIMIT)
                if len(line) == RECORD_LIMIT:
                    raise ValueError(
                        f"{name} is a line of over {RECORD_LIMIT:,} bytes: write long documents as "
                        ".txt files, which are read piece by piece"
                    )
                position += len(line)
                if not line.isspace():
                    yield from self.rows.blocks(json_object(line, name), name)


def json_object(line: bytes, name: str) -> dict[str, Any]:
    """A line's JSON object, or ValueError."""
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{name} is not a JSON object: {error}") from error
    if isinstance(value, dict):
        return value
    raise ValueError(f"{name} is not a JSON object but a {type(value).__name__}")


@dataclass(frozen=True)
class ParquetPart(Part):
    """Consecutive row groups of a parquet file; `first` is the number of their first row."""

    path: Path
    name: str
    groups: tuple[int, ...]
    first: int
    bytes: int
    rows: Rows

    @property
    def size(self) -> int:
        """Uncompressed bytes of the row groups."""
        return self.bytes

    def read(self) -> Iterator[Block]:
        """Yield each row's document."""
        from pyarrow.parquet import ParquetFile

        number = self.first
        with ParquetFile(self.path, memory_map=True) as file:
            count = sum(file.metadata.row_group(group).num_rows for group in self.groups)
            batch_rows = max(1, min(4096, BATCH_BYTES * count // max(self.bytes, 1)))
            for batch in file.iter_batches(
                batch_rows, row_groups=list(self.groups), columns=list(self.rows.columns)
            ):
                for row in batch.to_pylist():
                    yield from self.rows.blocks(row, f"{self.name}#{number}")
                    number += 1


def parquet_parts(path: Path, name: str, rows: Rows) -> list[ParquetPart]:
    """The parts of a parquet file; ValueError unless it has the columns that are wanted."""
    from pyarrow import ArrowInvalid
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            known, metadata = file.schema_arrow.names, file.metadata
    except ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file: {error}") from error
    missing = [column for column in rows.columns if column not in known]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]!r}; its columns are {', '.join(known)}")
    parts: list[ParquetPart] = []
    groups: list[int] = []
    first = row = size = 0
    for group in range(metadata.num_row_groups):
        groups.append(group)
        row += metadata.row_group(group).num_rows
        size += metadata.row_group(group).total_byte_size
        if size >= PART_BYTES or group + 1 == metadata.num_row_groups:
            parts.append(ParquetPart(path, name, tuple(groups), first, size, rows))
            groups, first, size = [], row, 0
    return parts
