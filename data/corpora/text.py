"""Anyone's text: files, folders and archives of text, records or books, or a hub data set."""

import codecs
import re
from collections.abc import Sequence
from pathlib import Path

from data.corpora.formats import WANTED as READ
from data.corpora.formats import File, StreamPart, files_of, is_known, named_kind
from data.corpora.hub import HubName, hub_parts, pinned, stream
from data.corpora.local import Listing, is_hidden, list_source, local_path, place, write_once
from data.documents import Document, Part, Piece, Source, file_parts
from data.records import JsonPart, TextRows, are_lines, json_parts, parquet_parts
from data.splits import (
    FULL_NAME,
    assign_splits,
    cut_file,
    hashed_split,
    names_splits,
    require_all_splits,
)

GLOB = re.compile(r"[*?\[]")
WANTED = f"a file, folder or glob of {READ}, or hub:OWNER/NAME"


def open_text(source: str | None, column: str, unit: str, work: Path) -> Source:
    """A document a file of text, a page or a book, or a record of JSON or parquet.

    Splits are those that paths name (`train/...`, `valid.txt`, ...). Where none is named, documents
    go by a hash of their names; one or two files of text are each cut 90/5/5 %.
    """
    files = list_texts(find_files(source), work)
    names = [file.name for file in files]
    named = names_splits(names)
    records = any(file.is_records for file in files)
    if not named and len(files) < 3 and not records:
        return Source("text", unit, file_parts(cut_files(files, work)))
    if named or not records:
        splits: list[str | None] = [*assign_splits(names)]
    else:
        splits = [None if file.is_records else hashed_split(Path(file.name).name) for file in files]
    parts: list[Part] = []
    pieces: list[Piece] = []
    for file, split in zip(files, splits, strict=True):
        if file.is_records:
            parts += record_parts(file, TextRows(column, split))
            continue
        assert split is not None
        document = Document(split, file.name)
        if file.is_plain:
            pieces.append(Piece(file.path, mark_bytes(file), file.path.stat().st_size, document))
        else:
            parts.append(StreamPart(file, document))
    return Source("text", unit, (*file_parts(pieces), *parts), drawn=not named)


def list_texts(found: Listing, work: Path) -> list[File]:
    """What is read of the files that were found and of the archives among them; tells it on stderr.

    Archives are unpacked into `work`.
    """
    files: list[File] = []
    for path in found.paths:
        some, passed = files_of(path, path.relative_to(found.root).as_posix(), work)
        files += some
        found.passed += passed
    found.tell([file.name for file in files])
    return files


def record_parts(file: File, rows: TextRows) -> Sequence[Part]:
    """The parts of a file of records."""
    if file.kind == "parquet":
        return parquet_parts(file.path, file.name, rows)
    if file.kind == "lines" or are_lines(file.path, file.name):
        return json_parts(file.path, file.name, rows, file.is_packed)
    return [JsonPart(file.path, file.name, rows)]


def mark_bytes(file: File) -> int:
    """Bytes of the mark that some programs put before a text in UTF-8."""
    with file.path.open("rb") as opened:
        return len(codecs.BOM_UTF8) if opened.read(3) == codecs.BOM_UTF8 else 0


def find_files(source: str | None) -> Listing:
    """The files of text that a source names.

    A folder gives those with a known ending; what is named itself, or by a glob, must be text.
    """
    given = Path() if source is None else local_path(source)
    if GLOB.search(str(given)) and not given.exists():
        found = find_glob(given)
    else:
        found = list_source(source, "text", WANTED, is_known)
    if not found.paths:
        raise ValueError(f"{source} holds no text{found.only()}; corpus text wants {WANTED}")
    if not given.is_dir():
        for path in found.paths:
            named_kind(path, str(path))
    return found


def find_glob(given: Path) -> Listing:
    """The files that a pattern names, but hidden ones."""
    literal = GLOB.split(str(given))[0]
    found = Listing(Path(literal if literal.endswith("/") else Path(literal).parent))
    for path in sorted(found.root.glob(given.relative_to(found.root).as_posix())):
        if any(map(is_hidden, path.relative_to(found.root).parts)):
            found.passed["hidden"] += 1
        else:
            found.add(path, lambda _: True)
    if not found.paths and not found.passed:
        raise ValueError(f"{given} names no file; corpus text wants {WANTED}")
    return found


def cut_files(files: list[File], work: Path) -> list[Piece]:
    """Cut each file into train, validation and test, about 90/5/5 % of its bytes."""
    paths = [plain(file, work) for file in files]
    cuts = [cut_file(path) for path in paths]
    require_all_splits(dict(zip((file.name for file in files), cuts, strict=True)))
    return [
        Piece(path, start, end, Document(split, f"{file.name}[{start}:{end}]"))
        for file, path, cut in zip(files, paths, cuts, strict=True)
        for split, (start, end) in cut.items()
    ]


def plain(file: File, work: Path) -> Path:
    """The text of a file as a file: itself, or written once below `work`."""
    if file.is_plain and not mark_bytes(file):
        return file.path
    blocks = StreamPart(file, Document("", file.name)).read()
    return write_once(place(file.path, work / "plain"), (block.data for block in blocks))


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
