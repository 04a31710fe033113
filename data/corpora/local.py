"""Local files that readers take, and how compressed ones are unpacked."""

import bz2
import gzip
import lzma
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data.common.files import atomic_path

OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
}
DAMAGE = (EOFError, lzma.LZMAError, zlib.error, zipfile.BadZipFile, gzip.BadGzipFile)


def existing(source: str | None, corpus: str, wanted: str) -> Path:
    """The path of a source that must be there; ValueError says what is wanted otherwise."""
    if source is None:
        raise ValueError(f"corpus {corpus} needs a source: give --source, {wanted}")
    path = Path(source).expanduser()
    if not path.exists():
        raise ValueError(f"{source} is not there; corpus {corpus} wants {wanted}")
    return path


def unpacked(path: Path, folder: Path) -> Path:
    """A plain file with the contents of `path`: itself, or unpacked once into `folder`.

    Takes .gz, .xz, .bz2 and a .zip with one file. ValueError for an archive that is damaged.
    """
    suffix = path.suffix.lower()
    if suffix not in OPENERS and suffix != ".zip":
        return path
    target = folder / path.stem
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with naming_damage(path), open_packed(path) as packed:
            copy(packed, target)
    return target


@contextmanager
def naming_damage(path: Path) -> Iterator[None]:
    """Turn what the readers of a damaged archive raise into a sentence about it."""
    try:
        yield
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged or cut short ({error}): copy it again") from error


def copy(stream: IO[bytes], target: Path) -> None:
    """Write a stream to a file, which is whole or absent."""
    with atomic_path(target) as temporary, temporary.open("wb") as plain:
        shutil.copyfileobj(stream, plain, 1 << 20)


def open_packed(path: Path) -> IO[bytes]:
    """The contents of a .gz, .xz, .bz2 or single-file .zip as a binary stream."""
    if path.suffix.lower() in OPENERS:
        return OPENERS[path.suffix.lower()](path, "rb")
    archive = zipfile.ZipFile(path)
    names = [name for name in archive.namelist() if not name.endswith("/")]
    if len(names) != 1:
        raise ValueError(f"{path} holds {len(names)} files instead of one: unpack it first")
    return archive.open(names[0])
