"""The text of a page of HTML, and of a book in EPUB, chapter after chapter."""

import codecs
import posixpath
import re
import zipfile
from collections.abc import Iterator
from typing import IO, Any
from urllib.parse import unquote

from data.documents import complaint

CONTAINER = "META-INF/container.xml"
ENCRYPTION = "META-INF/encryption.xml"
# A file is read whole.
LIMIT = 256 << 20
DECLARED = re.compile(rb"""(?:encoding|charset)\s*=\s*["']?([A-Za-z][\w.:-]*)""")
# As browsers take them.
WESTERN = {"iso-8859-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252", "ascii": "cp1252"}
XHTML = "http://www.w3.org/1999/xhtml"
# What follows the end of a page belongs to it all the same, as in pages put together.
ENDED = re.compile(r"</(?:body|html)\s*>", re.IGNORECASE)
HIDDEN, PREFORMATTED = (
    re.compile(rf"{name}\s*:\s*{value}", re.IGNORECASE)
    for name, value in (("display", "none"), ("white-space", "pre"))
)
# What no tree holds; pages that have it all the same are read.
CONTROL = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
AS_IT_IS = ("pre", "xmp", "listing", "plaintext")
# Kinds of chapters that are text; pictures among them are passed over.
CHAPTERS = ("html", "x-oeb1-document", "dtbook")
SHOWN = ("image/", "audio/", "video/")


def html_text(data: bytes, name: str) -> str:
    """The text of a page as a browser lays it out: a line for each block, runs of white space as
    one space outside of preformatted text.

    ValueError for one in an unknown encoding, or nested too deeply.
    """
    from inscriptis.html_engine import Inscriptis
    from lxml import etree

    try:
        tree = _parsed(decoded(data, name))
        _prepare(tree)
        text = Inscriptis(tree, _layout()).get_text().strip("\n")
    except etree.ParserError:
        return ""
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply to be read: convert it to .txt") from None
    return f"{text}\n" if text.strip() else ""


def _parsed(page: str) -> Any:
    """The tree of a page: by the rules of XML where it says so and keeps them."""
    from lxml import etree, html

    if XHTML in page[:4096]:
        parser = etree.XMLParser(
            encoding="utf-8",
            resolve_entities="internal",
            no_network=True,
            remove_comments=True,
            remove_pis=True,
        )
        try:
            return etree.fromstring(page.encode(), parser)
        except etree.XMLSyntaxError:
            pass
    lenient = html.HTMLParser(
        encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True
    )
    return html.document_fromstring(ENDED.sub("", page).encode(), parser=lenient)


def _layout() -> Any:
    """How elements stand on a page: Inscriptis's table of browsers, with what that lacks."""
    from inscriptis.css_profiles import CSS_PROFILES
    from inscriptis.html_properties import Display
    from inscriptis.model.config import ParserConfig
    from inscriptis.model.html_element import HtmlElement

    blocks = "center dd details dl dt fieldset form hr legend optgroup option section summary"
    more = {name: HtmlElement(display=Display.block) for name in blocks.split()}
    more |= {name: HtmlElement(display=Display.none) for name in ("template", "datalist")}
    more["pre"] = HtmlElement(display=Display.block, margin_before=1, margin_after=1)
    return ParserConfig(css={**CSS_PROFILES["strict"], **more, "q": HtmlElement()})


def _prepare(tree: Any) -> None:
    """Change a tree so that Inscriptis shows it as a browser would.

    It decodes entities again, keeps white space of what stands directly in <pre> and not in an
    element of it, knows no names of a name space, puts marks around each piece of a quotation, and
    takes each layout that it does not know for running text.
    """
    from lxml import etree

    for element in tree.iter(etree.Element):
        tag = element.tag.rpartition("}")[2]
        if tag != element.tag:
            element.tag = tag
        own, parent = element.get("style", ""), element.getparent()
        above = "" if parent is None else parent.get("style", "")
        kept = bool(tag in AS_IT_IS or PREFORMATTED.search(own) or PREFORMATTED.search(above))
        styles = ["display:none"] * bool(HIDDEN.search(own)) + ["white-space:pre"] * kept
        element.attrib.pop("style", None)
        if styles:
            element.set("style", ";".join(styles))
        text, tail = element.text or "", element.tail or ""
        if tag == "pre":
            text = text.removeprefix("\n")
        if tag == "q":
            text = f'"{text}'
            if len(element):
                element[-1].tail = f'{element[-1].tail or ""}"'
            else:
                text += '"'
        element.text, element.tail = _guarded(text), _guarded(tail)


def _guarded(text: str) -> str:
    """A text that gives itself back when entities are decoded, without control characters."""
    text = CONTROL.sub(lambda found: " " if found[0].isspace() else "\ufffd", text)
    return text.replace("&", "&amp;")


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

    ValueError for a file that is no EPUB, that lacks a chapter, has one that is no text, or whose
    chapters are encrypted.
    """
    with zipfile.ZipFile(file) as book:
        root = _xml(book, CONTAINER, name).find(".//{*}rootfile")
        package_path = "" if root is None else root.get("full-path", "")
        package = _xml(book, package_path, name)
        locked = set()
        if ENCRYPTION in book.namelist():
            references = _xml(book, ENCRYPTION, name).iterfind(".//{*}CipherReference")
            locked = {unquote(each.get("URI", "")) for each in references}
        for place in _chapters(package, name):
            chapter = posixpath.normpath(posixpath.join(posixpath.dirname(package_path), place))
            if chapter in locked:
                raise ValueError(f"{name} is encrypted, as sold books are: leave it out")
            if text := html_text(_member(book, chapter, name), f"{name}/{chapter}"):
                yield f"{text}\n"


def _chapters(package: Any, name: str) -> Iterator[str]:
    """Places of the chapters in the order of the spine, beside the package.

    Of one that is no text, what the book names in its stead.
    """
    items = {item.get("id"): item for item in package.iterfind(".//{*}manifest/{*}item")}
    for reference in package.iterfind(".//{*}spine/{*}itemref"):
        asked = item = items.get(reference.get("idref"))
        if asked is None:
            raise ValueError(
                f"{name} is not a whole EPUB book: it lacks {reference.get('idref')!r} of its spine"
            )
        for _ in items:
            if item is None or any(kind in item.get("media-type", "") for kind in CHAPTERS):
                break
            item = items.get(item.get("fallback"))
        else:
            # They stand for each other.
            item = None
        if item is None:
            kind = asked.get("media-type", "")
            if not kind.startswith(SHOWN):
                raise ValueError(f"{name} has a chapter of type {kind!r}: convert it to .txt")
        elif "nav" not in item.get("properties", "").split():
            yield unquote(item.get("href", ""))


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
