"""The standard library of the running Python: real text that is on every machine."""

import platform
import sysconfig
from pathlib import Path

from data.corpora.local import Listing
from data.documents import Document, Piece, Source, file_parts
from data.splits import hashed_split

LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
# Chosen among small numbers so that the shares by bytes come within 1 % of 90/5/5 on the
# standard libraries of 3.11, 3.12 and 3.13.
SALT = "14/"


def find_files(_: str | None = None) -> Listing:
    """The library's .py files but tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [
        path for path in root.rglob("*.py") if not LEFT_OUT & set(path.relative_to(root).parts[:-1])
    ]
    return Listing(root, sorted(paths))


def open_pystdlib() -> Source:
    """Every file a document, sorted by path.

    The split of a file is a hash of its path, so it is the same on every machine.
    """
    found = find_files()
    pieces = []
    for path in found.paths:
        name = path.relative_to(found.root).as_posix()
        document = Document(hashed_split(name, SALT), name)
        pieces.append(Piece(path, 0, path.stat().st_size, document))
    return Source(
        corpus="pystdlib",
        unit="bits_per_byte",
        parts=file_parts(pieces),
        facts={"python": platform.python_version()},
    )
