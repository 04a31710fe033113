"""Names as they stand in tables, pages and figures.

Corpora, documents and runs are called after files or by strangers, so that a name may hold line
ends, bytes that are not UTF-8, and signs that Markdown or matplotlib would take for an order.
"""

import re
import unicodedata

LONGEST = 80
"""Characters of a name in a figure or table, whose layout a longer one would break."""
MARKUP = re.compile(r"([\\`*_<>\[\]$|~#])")
"""What Markdown may read as more than itself."""


def plain(name: object) -> str:
    """A name on one line; what cannot be read, such as control characters and bytes that are not
    UTF-8, is written as escapes.
    """
    return "".join(map(_plain, str(name)))


def _plain(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    if "\udc80" <= character <= "\udcff":
        # How Python keeps a byte of a file's name that is not UTF-8.
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def short(name: object) -> str:
    """As `plain`, cut in the middle where it is very long."""
    text = plain(name)
    if len(text) <= LONGEST:
        return text
    half = (LONGEST - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def drawn(name: object) -> str:
    """A name for matplotlib, which reads what stands between dollar signs as TeX and leaves names
    that begin with an underscore out of legends.
    """
    text = short(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def marked(name: object) -> str:
    """A name for Markdown, which shows it as it is."""
    return MARKUP.sub(r"\\\1", plain(name))
