"""What a file of a text corpus holds: by its name, or by its beginning where that says nothing."""

import codecs
import mimetypes
import posixpath
import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal
from urllib.parse import unquote

from data.corpora.archives import is_archive, unpack
from data.corpora.local import OPENERS, counted, ending, naming_damage, open_packed
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
CONTAINER = "META-INF/container.xml"
ENCRYPTION = "META-INF/encryption.xml"
# A file is read whole.
LIMIT = 256 << 20
DECLARED = re.compile(rb"""(?:encoding|charset)\s*=\s*["']?([A-Za-z][\w.:-]*)""")
# As browsers take them.
WESTERN = {"iso-8859-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252"}


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


def html_text(data: bytes, name: str) -> str:
    """The text of a page; ValueError for one in an unknown encoding, or nested too deeply."""
    from inscriptis.html_engine import Inscriptis
    from lxml import etree, html

    page = decoded(data, name).encode()
    parser = html.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True)
    try:
        text = Inscriptis(html.document_fromstring(page, parser=parser)).get_text().strip("\n")
    except etree.ParserError:
        return ""
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply to be read: convert it to .txt") from None
    return f"{text}\n" if text else ""


def decoded(data: bytes, name: str) -> str:
    """A page in UTF-8, or in what its mark or its head says; ValueError otherwise."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        said = DECLARED.search(data, 0, 4096)
    encoding = said[1].decode().lower() if said else "utf-16"
    try:
        if said is None and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError(f"{name} {complaint(data)}")
        return data.decode(WESTERN.get(encoding, encoding))
    except (LookupError, UnicodeDecodeError):
        raise ValueError(f"{name} is not in {encoding}, as it says: convert it to UTF-8") from None


def epub_text(file: IO[bytes], name: str) -> Iterator[str]:
    """The text of a book, chapter after chapter in the order of its spine, a blank line after each.

    ValueError for a file that is no EPUB, that lacks a chapter, or whose chapters are encrypted.
    """
    with zipfile.ZipFile(file) as book:
        root = _xml(book, CONTAINER, name).find(".//{*}rootfile")
        package_path = "" if root is None else root.get("full-path", "")
        package = _xml(book, package_path, name)
        items = {item.get("id"): item for item in package.iterfind(".//{*}manifest/{*}item")}
        locked = set()
        if ENCRYPTION in book.namelist():
            references = _xml(book, ENCRYPTION, name).iterfind(".//{*}CipherReference")
            locked = {unquote(each.get("URI", "")) for each in references}
        for reference in package.iterfind(".//{*}spine/{*}itemref"):
            item = items.get(reference.get("idref"))
            if item is None or "nav" in item.get("properties", "").split():
                continue
            if "html" not in item.get("media-type", ""):
                continue
            place = unquote(item.get("href", ""))
            chapter = posixpath.normpath(posixpath.join(posixpath.dirname(package_path), place))
            if chapter in locked:
                raise ValueError(f"{name} is encrypted, as sold books are: leave it out")
            if text := html_text(_member(book, chapter, name), f"{name}/{chapter}"):
                yield f"{text}\n"


def _xml(book: zipfile.ZipFile, member: str, name: str) -> Any:
    """The root of one of a book's XML files; nothing outside of the file is fetched."""
    from lxml import etree

    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False)
    try:
        return etree.fromstring(_member(book, member, name), parser)
    except etree.XMLSyntaxError as error:
        raise ValueError(f"{name} is not an EPUB book: {member} is not XML ({error})") from None


def _member(book: zipfile.ZipFile, member: str, name: str) -> bytes:
    """One of a book's files."""
    try:
        info = book.getinfo(member)
    except KeyError:
        raise ValueError(
            f"{name} is not a whole EPUB book: it lacks {member or 'its list'}"
        ) from None
    if info.flag_bits & 1:
        raise ValueError(f"{name} is encrypted: unpack it with its password first")
    if info.file_size > LIMIT:
        raise ValueError(f"{name} has a chapter of over {LIMIT:,} bytes: convert it to .txt")
    return book.read(info)
