"""What readers hand to the encoder: parts of a corpus, each a run of documents in blocks.

A part is a small picklable description of some 16 MiB of source. Workers read parts independently
and in any order; a long document may run over several parts. Nothing holds a whole document.
"""

import codecs
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, TypeVar

PART_BYTES = 16 << 20
BLOCK_BYTES = 1 << 20
SPLITS = ("train", "validation", "test")
SAMPLE = 1 << 16
"""Bytes that tell an encoding."""
# Few enough that no text is taken for binary data, and compressed data always is: there a byte in
# 256 is NUL.
NULS = 1 / 400
WIDE = ("utf_32", "utf_16", "utf_32_le", "utf_32_be", "utf_16_le", "utf_16_be")
# Of the many single-byte encodings that fit a text, the usual ones.
OTHERS = ("cp1252", "cp1251", "koi8_r", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr")
MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
CONTROLS = bytes({*range(32)} - {*b"\t\n\v\f\r\b\x1b"}) + b"\x7f"

Item = TypeVar("Item")


def refuse_wide(name: str, data: bytes, begins: bool) -> None:
    """ValueError if a block of a text is rich in NULs or, its first one, begins as UTF-16."""
    nuls = data.count(0)
    if (begins and data.startswith(MARKS)) or (nuls > 1 and nuls > NULS * len(data)):
        raise ValueError(f"{name} {complaint(data)}")


def complaint(data: bytes) -> str:
    """What to say of bytes that are not UTF-8: what they seem to be, and what to do."""
    encoding = seems(data)
    if encoding is None:
        return "is not text but binary data: convert it to text in UTF-8, or leave it out"
    return f"is not valid UTF-8 and seems to be in {encoding}: convert it to UTF-8, as iconv does"


def seems(data: bytes) -> str | None:
    """The encoding that bytes which are not UTF-8 seem to be in; None for binary data."""
    from charset_normalizer import from_bytes

    wide = data.startswith(MARKS) or data.count(0) > NULS * len(data)
    # Around the first NUL, from and to multiples of four, so that wide characters stay whole.
    start = max(data.find(0) - SAMPLE // 2, 0) // 4 * 4 if wide else 0
    sample = data[start : min(start + SAMPLE, len(data) // 4 * 4 if wide else len(data))]
    best = from_bytes(sample, cp_isolation=list(WIDE if wide else OTHERS)).best()
    if best is None or not is_text(str(best).encode()):
        return None
    return best.encoding.replace("_", "-")


def is_text(data: bytes) -> bool:
    """Whether the beginning of a file is UTF-8 with few control characters."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)
    except UnicodeDecodeError:
        return False
    controls = len(data) - len(data.translate(None, CONTROLS))
    return controls * 1000 <= len(data)


@dataclass(frozen=True)
class Expected:
    """SHA-256 and, if it is known, length in bytes that a list gives for a text.

    required: a text that differs is refused, not only told of.
    """

    sha256: str
    bytes: int | None = None
    required: bool = True

    def difference(self, sha256: str, size: int) -> str | None:
        """How a text differs from what is expected, in words; None if it does not."""
        if sha256 == self.sha256:
            return None
        differs = f"does not have the SHA-256 that checksums gives ({self.sha256[:12]}...)"
        if self.bytes is None:
            return differs
        more = size - self.bytes
        length = (
            f"{abs(more):,} bytes {'more' if more > 0 else 'fewer'}" if more else "as many bytes"
        )
        return f"{differs} and has {length}"


@dataclass(frozen=True)
class Document:
    """Where a document belongs and what is known of it besides its text.

    name: anything, made readable; details: title, year and the like, kept in the index; expected:
    what a list of checksums says of it.
    """

    split: str
    name: str
    details: dict[str, Any] = field(default_factory=dict)
    expected: Expected | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", readable(self.name))


def readable(name: str) -> str:
    r"""A name that any program can print, such as a file's that is not UTF-8: `caf\xe9.txt`."""
    if name.isprintable():
        return name
    named = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if ord(c) > 0x9F or c.isprintable() else f"\\x{ord(c):02x}" for c in named)


@dataclass(frozen=True)
class Block:
    """Consecutive bytes of one document.

    begins: the document's first block, even if empty; without it the block continues the document
    of the block before, in the previous part if need be.
    """

    document: Document
    data: bytes
    begins: bool


class Part(ABC):
    """A picklable piece of a corpus that one worker reads by itself."""

    @property
    def size(self) -> int | None:
        """Bytes of text, for progress and for sampling; None where only reading would tell."""
        return None

    @abstractmethod
    def read(self) -> Iterator[Block]:
        """Yield the part's blocks, each of bounded size, in order."""

    def texts(self) -> Iterator[tuple[Document, bool]]:
        """Yield a document for each run of one, and whether there is more to it than white space.

        Read to the end unless the part knows better.
        """
        for block in self.read():
            yield block.document, bool(block.data.strip())

    def line_of(self, document: Document, position: int) -> int:
        """The line, from 1, of a byte of what this part holds of a document; it is read again."""
        line = 1 + self.lines_before(document)
        for block in self.read():
            if block.document == document and position > 0:
                line += block.data[:position].count(b"\n")
                position -= len(block.data)
        return line

    def lines_before(self, document: Document) -> int:  # noqa: ARG002
        """Lines of a document's file before what this part holds of it."""
        return 0


@dataclass(frozen=True)
class DerivedPart(Part):
    """A part that gives another one's text otherwise: in other splits, or not all of it."""

    part: Part

    @property
    def size(self) -> int | None:
        """That of the part, which it reads."""
        return self.part.size


@dataclass(frozen=True)
class Piece:
    """Bytes [start, end) of a file, which are a document or, cut at a line end, a run of it."""

    path: Path
    start: int
    end: int
    document: Document
    begins: bool = True


@dataclass(frozen=True)
class FilePart(Part):
    """Pieces of plain files, taken as they are."""

    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """Bytes of all pieces."""
        return sum(piece.end - piece.start for piece in self.pieces)

    def read(self) -> Iterator[Block]:
        """Yield the pieces in blocks; ValueError when a file has shrunk since it was listed."""
        for piece in self.pieces:
            begins, left = piece.begins, piece.end - piece.start
            with piece.path.open("rb") as file:
                file.seek(piece.start)
                while left or begins:
                    data = file.read(min(left, BLOCK_BYTES))
                    if left and not data:
                        raise ValueError(f"{piece.path} became shorter while it was read")
                    refuse_wide(piece.document.name, data, begins)
                    yield Block(piece.document, data, begins)
                    begins, left = False, left - len(data)

    def texts(self) -> Iterator[tuple[Document, bool]]:
        """The documents of all pieces; the first block says whether there is text."""
        for piece in self.pieces:
            with piece.path.open("rb") as file:
                file.seek(piece.start)
                data = file.read(min(piece.end - piece.start, BLOCK_BYTES))
            yield piece.document, bool(data.strip())

    def lines_before(self, document: Document) -> int:
        """Lines of a document's file before this part."""
        piece = next(piece for piece in self.pieces if piece.document == document)
        return count_lines(piece.path, 0, piece.start)


def count_lines(path: Path, start: int, end: int) -> int:
    """How many lines end in bytes [start, end) of a file."""
    count = 0
    with path.open("rb") as file:
        file.seek(start)
        while start < end and (data := file.read(min(BLOCK_BYTES, end - start))):
            count += data.count(b"\n")
            start += len(data)
    return count


def file_parts(pieces: Iterable[Piece], cut: bool = True) -> tuple[FilePart, ...]:
    """Group pieces, in order, into parts of about PART_BYTES.

    cut: cut longer pieces at line ends, so that several workers can share a document.
    """
    short = (each for piece in pieces for each in (cut_at_lines(piece) if cut else [piece]))
    return tuple(FilePart(group) for group in grouped(short, lambda each: each.end - each.start))


def grouped(items: Iterable[Item], size: Callable[[Item], int]) -> Iterator[tuple[Item, ...]]:
    """Items in order, in groups of about PART_BYTES."""
    group: list[Item] = []
    total = 0
    for item in items:
        group.append(item)
        total += size(item)
        if total >= PART_BYTES:
            yield tuple(group)
            group, total = [], 0
    if group:
        yield tuple(group)


def cut_at_lines(piece: Piece) -> Iterator[Piece]:
    """Cut a piece into runs of about PART_BYTES, each but the last ending after a newline."""
    start, begins = piece.start, piece.begins
    with piece.path.open("rb") as file:
        while piece.end - start > PART_BYTES:
            stop = next_line(file, start + PART_BYTES, piece.end)
            yield Piece(piece.path, start, stop, piece.document, begins)
            start, begins = stop, False
    if begins or start < piece.end:
        yield Piece(piece.path, start, piece.end, piece.document, begins)


def next_line(file: IO[bytes], position: int, end: int) -> int:
    """Offset of the first line that begins at or after `position`, or `end` if none does."""
    file.seek(position - 1)
    while file.tell() < end and (block := file.readline(BLOCK_BYTES)):
        if block.endswith(b"\n"):
            return min(file.tell(), end)
    return end


@dataclass(frozen=True)
class Official:
    """What the full benchmark has, by split, to tell it from a part of it.

    words: published counts, the denominators of word perplexity; digests: over the texts' names and
    hashes, where these are known; vocabulary: number of word types.
    """

    words: dict[str, int]
    digests: dict[str, str] | None = None
    vocabulary: int | None = None


@dataclass(frozen=True)
class Source:
    """A corpus that was found and can be read.

    corpus: the honest name, printed with every number; unit: what its benchmark reports; parts: in
    the order of the corpus; facts: what else the manifest says of the source; words: what counts as
    a word (in WikiText-103 the end of a line does); official: how to know the full benchmark;
    drawn: splits are those of a hash, which may leave one of them empty.
    """

    corpus: str
    unit: str
    parts: tuple[Part, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    words: Literal["spaces", "spaces and lines", "none"] = "spaces"
    official: Official | None = None
    drawn: bool = False
