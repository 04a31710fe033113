"""WikiText-103 (Merity et al. 2016): the original token files, a zip of them, or parquet."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from data.corpora.archives import Member, is_archive, unpack
from data.corpora.hub import HubName, pinned, stream, texts_of
from data.corpora.local import Listing, ending, list_source, unpacked, write_once
from data.documents import BLOCK_BYTES, Document, Official, Piece, Source, file_parts
from data.records import open_parquet
from data.splits import FULL_NAME, named_split

WANTED = (
    "a folder, .zip or .tar with wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens (or "
    ".raw), or with train-*.parquet, validation-*.parquet and test-*.parquet"
)
ON_HUB = HubName("Salesforce/wikitext", "wikitext-103-v1")
FILE = re.compile(r"wiki\.(train|valid|test)\b.*?\.(tokens|raw)(\.xz|\.gz|\.bz2|\.zst)?$", re.I)
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
        rows = {split: texts_of(hub, data) for split, data in stream(hub, WANTED).items()}
        files = from_rows(rows, work / str(hub.revision))
        raw = "raw" in (hub.config or hub.name)
    else:
        files, raw = local_files(source, work)
    pieces = [piece for split, file in files.items() for piece in articles(file, split)]
    return Source(
        corpus="wikitext-103-raw" if raw else "wikitext-103",
        unit="word_perplexity",
        parts=file_parts(pieces),
        facts=facts,
        words="spaces and lines",
        official=OFFICIAL,
    )


def is_known(name: str) -> bool:
    """Whether files of this name can be WikiText."""
    return FILE.fullmatch(name) is not None or name.lower().endswith(".parquet")


def find_files(source: str | None) -> Listing:
    """The file that a source names, or the files of WikiText in its folder."""
    return list_source(source, "wikitext", WANTED, is_known)


def local_files(source: str | None, work: Path) -> tuple[dict[str, Path], bool]:
    """The plain file of each split, and whether it is the raw text; ValueError if there is none."""
    found = find_files(source)
    members = [Member(str(path), path) for path in found.paths]
    if len(members) == 1 and is_archive(members[0].name):
        members, passed = unpack(members[0].path, work, lambda name: is_known(Path(name).name))
        found.passed += passed
    texts = [each for each in members if token_file(each)]
    tables = [each for each in members if each not in texts and named_split(Path(each.name).name)]
    if not texts and not tables:
        raise ValueError(f"{source} holds no WikiText{found.only()}; it wants {WANTED}")
    chosen = texts or tables
    found.passed.update(ending(each.name) for each in members if each not in chosen)
    found.tell([each.name for each in chosen])
    if texts:
        return token_files(texts, work)
    rows: dict[str, list[Member]] = {}
    for table in tables:
        rows.setdefault(str(named_split(Path(table.name).name)), []).append(table)
    files = from_rows({split: parquet_rows(some) for split, some in rows.items()}, work)
    return files, "raw" in Path(str(source)).name


def token_file(member: Member) -> tuple[str, str] | None:
    """Split and kind (tokens or raw) of a file with the original's name; None for others."""
    match = FILE.fullmatch(Path(member.name).name)
    return (FULL_NAME[match[1].lower()], match[2].lower()) if match else None


def token_files(members: list[Member], work: Path) -> tuple[dict[str, Path], bool]:
    """The plain file of each split and whether they are raw; ValueError for two of one split."""
    first: dict[str, Member] = {}
    kinds: dict[str, Member] = {}
    for member in members:
        split, kind = token_file(member) or ("", "")
        kinds.setdefault(kind, member)
        if first.setdefault(split, member) is not member or len(kinds) > 1:
            other = first[split] if first[split] is not member else members[0]
            raise ValueError(
                f"there are several files for one split, {other.name} and {member.name}: give a "
                "folder with one each, all .tokens or all .raw"
            )
    files = {split: unpacked(member.path, work) for split, member in first.items()}
    return files, set(kinds) == {"raw"}


def from_rows(rows: Mapping[str, Iterable[str | None]], work: Path) -> dict[str, Path]:
    """Write rows of text, a line each, as the original files have them."""
    files = {}
    for split, some in rows.items():
        lines = (whole_line(row, n, split) for n, row in enumerate(some))
        files[split] = write_once(work / f"wiki.{split}.tokens", lines)
    return files


def whole_line(row: str | None, number: int, split: str) -> bytes:
    """A row as the original has it, or ValueError for one that is null.

    Parquet copies have "" for a line of one space; some lack the ends of lines, or the spaces
    around them.
    """
    if row is None:
        raise ValueError(
            f"row {number:,} (from 0) of {split} is null in column 'text': get another copy"
        )
    if not row.endswith("\n"):
        row = f" {row.strip()} \n" if row.strip() else " \n"
    return row.encode()


def parquet_rows(members: list[Member]) -> Iterator[str | None]:
    """The column text of parquet files, in order."""
    for member in members:
        with open_parquet(member.path, member.name, ["text"]) as file:
            for batch in file.iter_batches(4096, columns=["text"]):
                rows = batch.column(0).to_pylist()
                if any(not isinstance(row, str | None) for row in rows):
                    raise ValueError(
                        f"{member.name} has no text in column 'text': get another copy"
                    )
                yield from rows


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
