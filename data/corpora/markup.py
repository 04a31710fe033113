"""The text of .html and .epub files, as a browser would lay it out."""

import codecs
import posixpath
import re
import zipfile
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import unquote

from data.decoding import complaint

CONTAINER = "META-INF/container.xml"
ENCRYPTION = "META-INF/encryption.xml"
# A file is read whole.
LIMIT = 256 << 20
DECLARED = re.compile(rb"""(?:encoding|charset)\s*=\s*["']?([A-Za-z][\w.:-]*)""")
# As browsers take them.
WESTERN = {"iso-8859-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252"}


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
