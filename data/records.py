"""Parts whose documents are records: lines or lists of JSON, rows of parquet or of a hub data set.

A record is read whole, so its text must fit in memory, and reading parquet takes about three times
its largest row group; plain text files have no such limits.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.corpora.local import naming_damage, open_packed
from data.documents import (
    BLOCK_BYTES,
    Block,
    Document,
    Part,
    Piece,
    complaint,
    count_lines,
    cut_at_lines,
    grouped,
)
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

    def blocks(self, row: Mapping[str, Any], name: str, where: str) -> Iterator[Block]:
        """The text of a row that is at `where`; ValueError if it has none, or too much."""
        text = row.get(self.text)
        try:
            data = text.encode()  # type: ignore[union-attr]
        except AttributeError:
            raise ValueError(f"{where} {self._lack(row)}") from None
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{where} is not valid Unicode: character {error.start + 1} of its text is half of "
                "a pair; write the text again"
            ) from error
        if len(data) > RECORD_LIMIT:
            raise ValueError(
                f"{where} has {len(data):,} bytes and a record may have {RECORD_LIMIT:,}: write "
                "long documents as .txt files, which are read piece by piece"
            )
        document = self.document(row, name)
        for start in range(0, max(len(data), 1), BLOCK_BYTES):
            yield Block(document, data[start : start + BLOCK_BYTES], start == 0)

    def _lack(self, row: Mapping[str, Any]) -> str:
        """What to say of a row without text."""
        if self.text not in row:
            known = ", ".join(row) or "none"
            return f"has no text in column {self.text!r}; its columns are {known}"
        if row[self.text] is None:
            return f"has null in column {self.text!r}: leave such rows out of the source"
        kind = type(row[self.text]).__name__
        return f"has no text in column {self.text!r} but a value of type {kind}"


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
    """Bytes [start, end) of a file of JSON lines, or (None) all of one that may be packed.

    name: the file's; line: the number of the first line, from 1.
    """

    path: Path
    name: str
    start: int
    end: int | None
    line: int
    rows: Rows

    @property
    def size(self) -> int | None:
        """Bytes of JSON, somewhat more than their text."""
        return None if self.end is None else self.end - self.start

    def read(self) -> Iterator[Block]:
        """Yield each line's document; ValueError for one that is not blank nor a JSON object."""
        position, number = self.start, self.line
        with naming_damage(self.name), open_packed(self.path) as file:
            if position:
                file.seek(position)
            while self.end is None or position < self.end:
                where = f"{self.name}, line {number}"
                line = file.readline(RECORD_LIMIT)
                if len(line) == RECORD_LIMIT:
                    raise ValueError(
                        f"{where} is a line of over {RECORD_LIMIT:,} bytes: write long documents "
                        "as .txt files, which are read piece by piece"
                    )
                if not line and self.end is not None:
                    raise ValueError(f"{self.name} became shorter while it was read")
                if not line:
                    return
                if not line.isspace():
                    row = json_object(json_value(line, where), where)
                    yield from self.rows.blocks(row, f"{self.name}@{position}", where)
                position += len(line)
                number += 1


@dataclass(frozen=True)
class JsonPart(Part):
    """A file, perhaps packed, that is one JSON value: a list of records, or one record."""

    path: Path
    name: str
    rows: Rows

    def read(self) -> Iterator[Block]:
        """Yield each record's document."""
        with naming_damage(self.name), open_packed(self.path) as file:
            data = file.read(RECORD_LIMIT + 1)
        if len(data) > RECORD_LIMIT:
            raise ValueError(
                f"{self.name} is one JSON value of over {RECORD_LIMIT:,} bytes: write its records "
                "as .jsonl, a line each"
            )
        value = json_value(data, self.name)
        records = value if isinstance(value, list) else [value]
        for number, record in enumerate(records):
            where = f"{self.name}, record {number + 1}"
            yield from self.rows.blocks(json_object(record, where), f"{self.name}#{number}", where)


def json_value(data: bytes, where: str) -> Any:
    """A JSON value, or ValueError."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError(f"{where} is nested too deeply to be read: write it flat") from None
    except UnicodeDecodeError:
        raise ValueError(f"{where} {complaint(data)}") from None
    except ValueError as error:
        if b"\0" in data:
            raise ValueError(f"{where} {complaint(data)}") from None
        raise ValueError(f"{where} is not a JSON object: {error}") from error


def json_object(value: Any, where: str) -> dict[str, Any]:
    """A value that is a JSON object, or ValueError."""
    if isinstance(value, dict):
        return value
    raise ValueError(f"{where} is not a JSON object but a {type(value).__name__}")


def json_parts(path: Path, name: str, rows: Rows, packed: bool) -> Sequence[Part]:
    """A .jsonl file in parts of whole lines, or as one part if it is packed."""
    if packed:
        return [JsonLinesPart(path, name, 0, None, 1, rows)]
    whole = Piece(path, 0, path.stat().st_size, Document("", name), begins=False)
    parts: list[JsonLinesPart] = []
    line = 1
    for piece in cut_at_lines(whole):
        parts.append(JsonLinesPart(path, name, piece.start, piece.end, line, rows))
        if piece.end < whole.end:
            line += count_lines(path, piece.start, piece.end)
    return parts


def are_lines(path: Path, name: str) -> bool:
    """Whether a .json file, perhaps packed, holds an object a line, as many do."""
    with naming_damage(name), open_packed(path) as file:
        line = b"\n"
        while line.isspace():
            line = file.readline(RECORD_LIMIT)
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


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
        """Yield each row's document; ValueError for a damaged file."""
        number = self.first
        with open_parquet(self.path, self.name, self.rows.columns) as file:
            count = sum(file.metadata.row_group(group).num_rows for group in self.groups)
            batch_rows = max(1, min(4096, BATCH_BYTES * count // max(self.bytes, 1)))
            for batch in file.iter_batches(
                batch_rows, row_groups=list(self.groups), columns=list(self.rows.columns)
            ):
                for row in batch.to_pylist():
                    where = f"{self.name}, row {number} (from 0)"
                    yield from self.rows.blocks(row, f"{self.name}#{number}", where)
                    number += 1


@contextmanager
def open_parquet(path: Path, name: str, columns: Iterable[str]) -> Iterator[Any]:
    """A `ParquetFile`; ValueError if it is damaged or lacks a column that is wanted."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path, memory_map=True) as file:
            known = file.schema_arrow.names
            for column in columns:
                if column not in known:
                    raise ValueError(
                        f"{name} has no column {column!r}; its columns are {', '.join(known)}"
                    )
            yield file
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{name} is not a parquet file, or damaged: {reason}") from error


def parquet_parts(path: Path, name: str, rows: Rows) -> list[ParquetPart]:
    """The parts of a parquet file; ValueError unless it has the columns that are wanted."""
    with open_parquet(path, name, rows.columns) as file:
        metadata = file.metadata
    found = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    parts: list[ParquetPart] = []
    first = 0
    for groups in grouped(range(len(found)), lambda group: found[group].total_byte_size):
        size = sum(found[group].total_byte_size for group in groups)
        parts.append(ParquetPart(path, name, groups, first, size, rows))
        first += sum(found[group].num_rows for group in groups)
    return parts
