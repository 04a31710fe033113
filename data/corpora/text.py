"""Anyone's text: files and folders of plain text, JSON lines or parquet, or a hub data set."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data.corpora.local import naming_damage, open_packed, unpacked
from data.cutting import cut_file, require_all_splits
from data.documents import (
    BLOCK_BYTES,
    Block,
    Document,
    Part,
    Piece,
    Source,
    cut_at_lines,
    file_parts,
)
from data.hub import HubName, hub_parts, pinned, stream
from data.records import JsonLinesPart, TextRows, parquet_parts
from data.splits import FULL_NAME, assign_splits, hashed_split, names_splits

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".parquet")
WANTED = f"a file, folder or glob of {', '.join(SUFFIXES)}, or hub:OWNER/NAME"


@dataclass(frozen=True)
class GzipPart(Part):
    """A compressed text file, a document."""

    path: Path
    document: Document

    @property
    def size(self) -> None:
        """Unknown before it is read."""
        return

    def read(self) -> Iterator[Block]:
        """Yield the text in blocks; ValueError for a damaged file."""
        begins = True
        with naming_damage(self.path), open_packed(self.path) as file:
            while (data := file.read(BLOCK_BYTES)) or begins:
                yield Block(self.document, data, begins)
                begins = False


def open_text(source: str | None, column: str, unit: str, work: Path) -> Source:
    """A document a file of text or a record of JSON lines or parquet.

    Splits are those that paths name (`train/...`, `valid.txt`, ...). Where none is named, documents
    go by a hash of their names; one or two files of text are each cut 90/5/5 %.
    """
    root, paths = find_files(source)
    names = [path.relative_to(root).as_posix() for path in paths]
    named = names_splits(names)
    if not named and len(paths) < 3 and not any(map(is_records, paths)):
        plain = [unpacked(path, work) for path in paths]
        return Source("text", unit, file_parts(cut_files(plain)))
    if named or not any(map(is_records, paths)):
        splits: list[str | None] = [*assign_splits(names)]
    else:
        splits = [None if is_records(path) else hashed_split(path.name) for path in paths]
    parts: list[Part] = []
    pieces: list[Piece] = []
    for path, name, split in zip(paths, names, splits, strict=True):
        if path.suffix == ".parquet":
            parts += parquet_parts(path, name, TextRows(column, split))
        elif path.suffix == ".jsonl":
            parts += json_parts(path, name, TextRows(column, split))
        else:
            assert split is not None
            document = Document(split, name)
            if path.suffix == ".gz":
                parts.append(GzipPart(path, document))
            else:
                pieces.append(Piece(path, 0, path.stat().st_size, document))
    return Source("text", unit, (*file_parts(pieces), *parts), drawn=not named)


def is_records(path: Path) -> bool:
    """Whether a file holds many documents."""
    return path.suffix in (".jsonl", ".parquet")


def find_files(source: str | None) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files of text in it, sorted."""
    if source is None:
        raise ValueError(f"corpus text needs a source: give --source, {WANTED}")
    given = Path(source).expanduser()
    if given.is_file():
        return given.parent, [given]
    if given.is_dir():
        root, pattern = given, "**/*"
    else:
        literal = re.split(r"[*?\[]", str(given))[0]
        root = Path(literal if literal.endswith("/") else Path(literal).parent)
        pattern = given.relative_to(root).as_posix()
    paths = sorted(path for path in root.glob(pattern) if path.is_file())
    if given.is_dir():
        paths = [path for path in paths if path.name.endswith(SUFFIXES)]
    if not paths:
        raise ValueError(f"{source} holds no text; corpus text wants {WANTED}")
    return root, paths


def cut_files(paths: list[Path]) -> list[Piece]:
    """Cut each file into train, validation and test, about 90/5/5 % of its bytes."""
    bounds = {path.name: cut_file(path) for path in paths}
    require_all_splits(bounds)
    return [
        Piece(path, start, end, Document(split, f"{path.name}[{start}:{end}]"))
        for path in paths
        for split, (start, end) in bounds[path.name].items()
    ]


def json_parts(path: Path, name: str, rows: TextRows) -> list[JsonLinesPart]:
    """A .jsonl file in parts of whole lines."""
    whole = Piece(path, 0, path.stat().st_size, Document("", name), begins=False)
    return [
        JsonLinesPart(path, name, piece.start, piece.end, rows) for piece in cut_at_lines(whole)
    ]


def open_hub_text(hub: HubName, column: str, unit: str) -> Source:
    """A document a row, in the splits of the data set, or by hash if it has but one."""
    hub = pinned(hub, WANTED)
    splits = stream(hub, WANTED)
    parts: list[Part] = []
    for split, data in splits.items():
        if len(splits) > 1 and split not in FULL_NAME:
            continue
        rows = TextRows(column, FULL_NAME[split] if len(splits) > 1 else None)
        parts += hub_parts(hub, split, data, rows, WANTED)
    return Source("text", unit, tuple(parts), hub.facts, drawn=len(splits) == 1)
