"""What a file of a text corpus holds: by its name, or by its beginning where that says nothing."""

import codecs
import mimetypes
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.corpora.archives import is_archive, unpack
from data.corpora.local import OPENERS, counted, ending, naming_damage, open_packed
from data.corpora.pages import LIMIT, epub_text, html_text
from data.documents import (
    BLOCK_BYTES,
    SAMPLE,
    Block,
    Document,
    Part,
    complaint,
    is_text,
    refuse_wide,
)

Kind = Literal["text", "lines", "json", "parquet", "html", "epub", "archive"]
KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".json": "json",
    ".parquet": "parquet",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".epub": "epub",
}
# What may be packed by one of OPENERS.
STREAMED = ("text", "lines", "json", "html")
WANTED = (
    ".txt, .jsonl, .ndjson, .json or .html (these also as .gz, .xz, .bz2 or .zst), .parquet, "
    ".epub, .zip or .tar"
)
# What to do about files that are no text, or text only to look at.
REFUSED = {
    ".pdf": "convert it to .txt, as pdftotext does",
    **dict.fromkeys((".csv", ".tsv"), "it is a table: write its texts as .jsonl or .parquet"),
    **dict.fromkeys((".doc", ".docx", ".odt", ".rtf"), "save it as plain text"),
    **dict.fromkeys((".mobi", ".azw", ".azw3", ".djvu", ".ps"), "convert it to .epub or .txt"),
    **dict.fromkeys((".wav", ".flac", ".mp3"), "sound is read by corpus audio, from .wav files"),
    **dict.fromkeys((".7z", ".rar", ".lz4", ".br", ".z", ".lzma"), "unpack it"),
    **dict.fromkeys((".arrow", ".feather", ".orc", ".avro"), "write it as .parquet"),
    **dict.fromkeys((".pkl", ".pickle", ".pyd", ".pt", ".pth"), "pickles are never opened"),
}
# How the types of text begin, also those whose names do not say so.
TEXT_TYPES = (
    "text/",
    "message/",
    *(f"application/{kind}" for kind in ("javascript", "xml", "x-csh", "x-latex", "x-sh")),
    *(f"application/{kind}" for kind in ("x-tcl", "x-tex", "x-troff")),
)


@dataclass(frozen=True)
class File:
    """A file to read, the name that its documents have, and what it holds."""

    path: Path
    name: str
    kind: Kind

    @property
    def is_records(self) -> bool:
        """Whether it holds many documents."""
        return self.kind in ("lines", "json", "parquet")

    @property
    def is_packed(self) -> bool:
        """Whether it can only be read from its beginning."""
        return ending(self.path.name).endswith(tuple(OPENERS))

    @property
    def is_plain(self) -> bool:
        """Whether it is text as it is."""
        return self.kind == "text" and not self.is_packed


def kind_of(name: str) -> Kind | None:
    """What a file of this name holds; None if it is not read."""
    if is_archive(name):
        return "archive"
    found = ending(name)
    packing = Path(found).suffix
    kind = KINDS.get(found.removesuffix(packing) if packing in OPENERS else found)
    return kind if kind in STREAMED or packing not in OPENERS else None


def is_known(name: str) -> bool:
    """Whether files of this name are read."""
    return kind_of(name) is not None


def named_kind(path: Path, name: str) -> Kind:
    """What a file that the user has named holds; ValueError, by name, for one that is no text."""
    if kind := kind_of(path.name):
        return kind
    last = path.suffix.lower()
    inner = Path(path.stem).suffix.lower() if last in OPENERS else last
    what = f"corpus text reads {WANTED}"
    if inner in KINDS:
        raise ValueError(f"{name} is a packed {inner} file: unpack it; {what}")
    if inner in REFUSED:
        raise ValueError(f"{name} is not read: {REFUSED[inner]}; {what}")
    # The types that Python knows, whatever those of this machine.
    known = mimetypes.MimeTypes().guess_type(f"x{inner}")[0] or "text/plain"
    if not known.startswith(TEXT_TYPES):
        raise ValueError(f"{name} is not read, since {inner} files are {known}: {what}")
    with naming_damage(path), open_packed(path) as file:
        head = file.read(SAMPLE)
    if not is_text(head):
        raise ValueError(f"{name} {complaint(head)}; {what}")
    return "text"


def files_of(path: Path, name: str, work: Path) -> tuple[list[File], Counter[str]]:
    """A file, or what is read of the archive that it is, and what of that is passed over.

    ValueError for a file that is no text, and for an archive that holds none.
    """
    kind = named_kind(path, str(path))
    if kind != "archive":
        return [File(path, name, kind)], Counter()
    members, passed = unpack(path, work, is_known)
    if not members and passed.total() - passed["hidden"] == 1:
        # As Text8 comes, whose one file has no suffix.
        members, _ = unpack(path, work / "only", lambda _: True)
        named_kind(members[0].path, f"{path}/{members[0].name}")
    if not members:
        holds = counted(passed) or "no files"
        raise ValueError(f"{path} holds no text but {holds}; corpus text reads {WANTED}")
    kinds = [kind_of(member.name) or "text" for member in members]
    return [
        File(member.path, f"{name}/{member.name}", kind)
        for member, kind in zip(members, kinds, strict=True)
    ], passed


@dataclass(frozen=True)
class StreamPart(Part):
    """A document in a file that is read from its beginning: packed text, a page or a book."""

    file: File
    document: Document

    def read(self) -> Iterator[Block]:
        """Yield the text in blocks; ValueError for a damaged file."""
        begins = True
        with naming_damage(self.file.name):
            for data in self._blocks():
                if begins:
                    data = data.removeprefix(codecs.BOM_UTF8)
                refuse_wide(self.file.name, data, begins)
                yield Block(self.document, data, begins)
                begins = False
        if begins:
            yield Block(self.document, b"", begins)

    def _blocks(self) -> Iterator[bytes]:
        path, name = self.file.path, self.file.name
        with open_packed(path) if self.file.kind != "epub" else path.open("rb") as file:
            if self.file.kind == "text":
                while data := file.read(BLOCK_BYTES):
                    yield data
                return
            if self.file.kind == "epub":
                texts = epub_text(file, name)
            else:
                page = file.read(LIMIT + 1)
                if len(page) > LIMIT:
                    raise ValueError(
                        f"{name} is a page of over {LIMIT:,} bytes: convert it to .txt"
                    )
                texts = iter([html_text(page, name)])
            for text in texts:
                data = text.encode()
                for start in range(0, len(data), BLOCK_BYTES):
                    yield data[start : start + BLOCK_BYTES]
