"""Anyone's text: files and folders of plain text."""

import re
from pathlib import Path

from data.corpora.local import fractions
from data.documents import SPLITS, Document, Piece, Source, file_parts, hashed_split

WANTED = "a file, a folder or a glob of .txt files"
SPLIT_FOLDERS = {name: name for name in SPLITS} | {"valid": "validation"}


def open_text(source: str | None) -> Source:
    """A document a file. Split by subfolder, else by a hash of the path, else (one file) 90/5/5 %.

    In a folder with a subfolder `train`, the subfolders train, validation (or valid) and test are
    the splits.
    """
    root, paths = find_files(source)
    by_folder = (root / "train").is_dir()
    pieces = []
    for path in paths:
        name = path.relative_to(root).as_posix()
        folder = name.partition("/")[0]
        if by_folder and folder not in SPLIT_FOLDERS:
            continue
        split = SPLIT_FOLDERS[folder] if by_folder else hashed_split(name)
        pieces.append(Piece(path, 0, path.stat().st_size, Document(split, name)))
    if len(pieces) == 1 and not by_folder:
        pieces = cut_one(pieces[0])
    return Source("text", "bits_per_byte", file_parts(pieces))


def find_files(source: str | None) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files in it, sorted."""
    if source is None:
        raise ValueError(f"corpus text needs a source: give --source, {WANTED}")
    given = Path(source).expanduser()
    if given.is_dir():
        paths = sorted(path for path in given.rglob("*.txt") if path.is_file())
        root = given
    elif given.is_file():
        paths, root = [given], given.parent
    else:
        literal = re.split(r"[*?\[]", str(given))[0]
        root = Path(literal if literal.endswith("/") else Path(literal).parent)
        pattern = given.relative_to(root).as_posix()
        paths = sorted(path for path in root.glob(pattern) if path.is_file())
    if not paths:
        raise ValueError(f"{source} holds no text; corpus text wants {WANTED}")
    return root, paths


def cut_one(piece: Piece) -> list[Piece]:
    """Cut a single file into train, validation and test, 90/5/5 % of its bytes."""
    validation, test = fractions(piece.end)
    name = piece.document.name
    return [
        Piece(piece.path, start, end, Document(split, f"{name}[{start}:{end}]"))
        for split, start, end in (
            ("train", 0, validation),
            ("validation", validation, test),
            ("test", test, piece.end),
        )
        if start < end
    ]
