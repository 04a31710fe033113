"""WikiText-103 (Merity et al. 2016): the original token files, a zip of them, or parquet."""

import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from data.common.files import atomic_path
from data.corpora.local import copy, existing, naming_damage, unpacked
from data.documents import BLOCK_BYTES, Document, Official, Piece, Source, file_parts
from data.hub import HubName, pinned, rows_of, stream
from data.splits import FULL_NAME, named_split

WANTED = (
    "a folder or zip with wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens (or .raw), or "
    "with train-*.parquet, validation-*.parquet and test-*.parquet"
)
ON_HUB = HubName("Salesforce/wikitext", "wikitext-103-v1")
FILE = re.compile(r"wiki\.(train|valid|test)\b.*?\.(tokens|raw)(\.xz|\.gz)?$")
# Words and one <eos> a line.
OFFICIAL = Official(
    words={"train": 103_227_021, "validation": 217_646, "test": 245_569}, vocabulary=267_735
)


def open_wikitext(source: str | None, hub: HubName | None, work: Path) -> Source:
    """A document an article; in the index, the end of a line counts as a word (`<eos>`)."""
    facts = {}
    if hub is not None:
        hub = pinned(hub, WANTED)
        facts = hub.facts
        files = from_rows(hub_rows(hub), work / str(hub.revision))
        raw = "raw" in (hub.config or hub.name)
    else:
        path = existing(source, "wikitext", WANTED)
        files, raw = local_files(path, work)
    pieces = [piece for split, file in files.items() for piece in articles(file, split)]
    return Source(
        corpus="wikitext-103-raw" if raw else "wikitext-103",
        unit="word_perplexity",
        parts=file_parts(pieces),
        facts=facts,
        words="spaces and lines",
        official=OFFICIAL,
    )


def local_files(path: Path, work: Path) -> tuple[dict[str, Path], bool]:
    """The plain file of each split, and whether it is the raw text; ValueError if there is none."""
    if path.suffix == ".zip":
        path = unzip(path, work)
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = [(match, each) for each in paths if (match := FILE.fullmatch(each.name))]
    if found:
        kinds = {match[2] for match, _ in found}
        if len(kinds) > 1 or len(found) > len({match[1] for match, _ in found}):
            raise ValueError(f"{path} has several files for one split: give a folder with one each")
        files = {FULL_NAME[match[1]]: unpacked(each, work) for match, each in found}
        return files, kinds == {"raw"}
    tables = [each for each in paths if each.suffix == ".parquet"]
    named = [(split, each) for each in tables if (split := named_split(each.name))]
    if not named:
        raise ValueError(f"{path} holds no WikiText; corpus wikitext wants {WANTED}")
    rows = {split: parquet_rows([p for s, p in named if s == split]) for split, _ in named}
    return from_rows(rows, work), "raw" in path.name


def unzip(path: Path, work: Path) -> Path:
    """Unpack the archive's token files into a folder; ValueError for a damaged archive."""
    folder = work / "zip"
    folder.mkdir(parents=True, exist_ok=True)
    with naming_damage(path), zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            target = folder / Path(name).name
            if FILE.fullmatch(target.name) and not target.exists():
                with archive.open(name) as packed:
                    copy(packed, target)
    return folder


def from_rows(rows: Mapping[str, Iterable[str]], work: Path) -> dict[str, Path]:
    """Write rows of text, a line each, as the original files have them."""
    work.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, lines in rows.items():
        files[split] = work / f"wiki.{split}.tokens"
        if not files[split].exists():
            with atomic_path(files[split]) as temporary, temporary.open("wb") as file:
                # Parquet copies have "" where the original has a blank line, " \n".
                file.writelines((line or " \n").encode() for line in lines)
    return files


def parquet_rows(paths: list[Path]) -> Iterator[str]:
    """The column text of parquet files, in order."""
    from pyarrow.parquet import ParquetFile

    for path in paths:
        with ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                known = ", ".join(file.schema_arrow.names)
                raise ValueError(f"{path} has no column 'text'; its columns are {known}")
            for batch in file.iter_batches(4096, columns=["text"]):
                yield from batch.column(0).to_pylist()


def hub_rows(hub: HubName) -> dict[str, Iterable[str]]:
    """The rows of each split of the hub's copy."""
    splits: dict[str, Any] = stream(hub, WANTED)
    return {split: (row["text"] for row in rows_of(hub, data)) for split, data in splits.items()}


def articles(path: Path, split: str) -> Iterator[Piece]:
    """Cut a file at its level-one headings, each with the blank line before it.

    A heading is a line ` = Title = ` between blank lines; table legends and the like look the same
    but have text around them.
    """
    with path.open("rb") as file:
        begins = [0, *(start for start in heading_starts(file) if start)]
    size = path.stat().st_size
    ends = [*begins[1:], size]
    with path.open("rb") as file:
        for start, end in zip(begins, ends, strict=True):
            file.seek(start)
            lines = file.read(min(end - start, BLOCK_BYTES)).split(b"\n", 2)
            title = lines[1] if len(lines) > 1 else lines[0]
            name = title.strip(b" =").decode("utf-8", "replace")
            yield Piece(path, start, end, Document(split, name))


def heading_starts(file: IO[bytes]) -> Iterator[int]:
    """Offsets of the blank lines that precede level-one headings."""
    position = 0
    before, start, heading = b"\n", 0, b""
    for line in file:
        blank = not line.strip()
        if blank and heading:
            yield start
        heading = b""
        if is_heading(line) and not before.strip():
            heading, start = line, position - len(before) if position else 0
        before = line
        position += len(line)


def is_heading(line: bytes) -> bool:
    """Whether a line has the form ` = Title = `, not ` = = Title = = `."""
    return (
        line.startswith(b" = ")
        and line.rstrip().endswith(b" =")
        and not line.startswith(b" = =")
        and not line.rstrip().endswith(b"= =")
    )
