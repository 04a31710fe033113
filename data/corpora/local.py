"""Local paths that sources name, the files below them, and how packed ones are read."""

import bz2
import errno
import gzip
import hashlib
import io
import lzma
import os
import re
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from data.common.files import atomic_path
from data.common.say import say

DAMAGE = (
    EOFError,
    OverflowError,
    UnicodeDecodeError,
    lzma.LZMAError,
    struct.error,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


def open_zstd(path: Path, mode: str = "rb") -> IO[bytes]:  # noqa: ARG001
    """A .zst file as a binary stream; unlike zstandard's, it notices an end that is missing."""
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


OPENERS: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".bz2": bz2.open,
    ".zst": open_zstd,
}


def local_path(source: str) -> Path:
    """The path that a source names; ValueError for one that cannot be on this machine."""
    if not source.strip() or "\0" in source:
        raise ValueError(f"{source!r} is no path: name a file or a folder")
    if remote := re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", source):
        if remote[1].lower() == "file":
            raise ValueError(f"{source} is an address: give the path alone, {source[7:]}")
        raise ValueError(
            f"{source} is on another machine, and only local files are read: copy it here and give "
            "that path; a data set of the Hugging Face hub is hub:OWNER/NAME"
        )
    try:
        return Path(source).expanduser()
    except RuntimeError:
        raise ValueError(f"{source} is in the home of a user who is not known here") from None


def existing(source: str | None, corpus: str, wanted: str) -> Path:
    """The path of a source that must be there; ValueError says what is wanted otherwise."""
    if source is None:
        raise ValueError(f"corpus {corpus} needs a source: give --source, {wanted}")
    path = local_path(source)
    if not os.path.lexists(path):
        raise ValueError(f"{source} is not there; corpus {corpus} wants {wanted}")
    if not (path.is_file() or path.is_dir()):
        raise ValueError(f"{source} is neither a file nor a folder; corpus {corpus} wants {wanted}")
    return path


@dataclass
class Listing:
    """Files of a source that are read, sorted, and how many are passed over, by what they are."""

    root: Path
    paths: list[Path] = field(default_factory=list)
    passed: Counter[str] = field(default_factory=Counter)

    def add(self, path: Path, wanted: Callable[[str], bool]) -> None:
        """Take a file, or count it as passed over."""
        if not path.exists():
            self.passed["broken link"] += 1
        elif not path.is_file():
            self.passed["folder" if path.is_dir() else "device or pipe"] += 1
        elif wanted(path.name):
            self.paths.append(path)
        else:
            self.passed[ending(path.name)] += 1

    def only(self) -> str:
        """What there is besides, in words that end a sentence."""
        return f" but {counted(self.passed)}" if self.passed else ""

    def tell(self, read: Collection[str]) -> None:
        """Say on stderr how many files are read, by the endings of their names, and passed over."""
        counts = counted(Counter(map(ending, read)))
        passed = f", passed over {counted(self.passed)}" if self.passed else ""
        say(f"{self.root}: reading {counts or 'no files'}{passed}")


def list_folder(root: Path, wanted: Callable[[str], bool]) -> Listing:
    """The files below a folder whose names are wanted; links are followed, hidden ones are not.

    OSError for a folder that cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    found, seen = Listing(root), set()
    for folder, folders, names in os.walk(root, onerror=fail, followlinks=True):
        here = Path(folder)
        state = here.stat()
        if (state.st_dev, state.st_ino) in seen:
            # A link back to a folder above, or a second way to one beside.
            folders.clear()
            found.passed["folder that another name leads to"] += 1
            continue
        seen.add((state.st_dev, state.st_ino))
        for some in (folders, names):
            found.passed["hidden"] += sum(map(is_hidden, some))
            some[:] = sorted(each for each in some if not is_hidden(each))
        folders.sort(key=lambda each: (here / each).is_symlink())
        for name in names:
            found.add(here / name, wanted)
    found.paths.sort()
    found.passed += Counter()
    return found


def list_source(
    source: str | None, corpus: str, wanted: str, known: Callable[[str], bool]
) -> Listing:
    """The file that a source names, or those below its folder whose names are known.

    ValueError for one that is not there says what is wanted.
    """
    path = existing(source, corpus, wanted)
    return list_folder(path, known) if path.is_dir() else Listing(path.parent, [path])


def is_hidden(name: str) -> bool:
    """Whether programs keep a file or folder of this name for themselves."""
    return name.startswith(".") or name == "__MACOSX"


def ending(name: str) -> str:
    """How a file's name ends, in small letters: `.txt`; `.txt.gz` with what packs it."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    if not suffixes:
        return "without suffix"
    return "".join(suffixes[-2:] if suffixes[-1] in OPENERS else suffixes[-1:])


def counted(counts: Counter[str]) -> str:
    """Counts in words, the greatest first: "3 .txt, 1 hidden"."""
    order = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count:,} {name}" for name, count in order[:8]]
    rest = sum(count for _, count in order[8:])
    return ", ".join([*shown, f"{rest:,} others"] if rest else shown)


def unpacked(path: Path, folder: Path) -> Path:
    """A plain file with the contents of `path`: itself, or unpacked once into `folder`.

    Takes .gz, .xz, .bz2, .zst and a .zip with one file. ValueError for an archive that is damaged.
    """
    if path.suffix.lower() not in (*OPENERS, ".zip"):
        return path
    return write_once(place(path, folder), blocks_of(path))


def blocks_of(path: Path) -> Iterator[bytes]:
    """The contents of a file that may be packed; ValueError for one that is damaged."""
    with naming_damage(path), open_packed(path) as packed:
        while block := packed.read(1 << 20):
            yield block


def write_once(target: Path, blocks: Iterable[bytes]) -> Path:
    """A file that is whole or absent, written of these blocks unless it is there."""
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            file.writelines(blocks)
    return target


def place(path: Path, folder: Path) -> Path:
    """Where in `folder` the contents of a file go: files of one name have places of their own."""
    return folder / hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]


@contextmanager
def naming_damage(path: Path | str) -> Iterator[None]:
    """Turn what the readers of a damaged or exotic archive raise into a sentence about it."""
    try:
        yield
    except DAMAGE as error:
        raise ValueError(f"{path} is damaged or cut short ({error}): copy it again") from error
    except NotImplementedError as error:
        # Of zipfile: a way of compression, or a version of the format.
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is packed in a way not known here ({reason}): unpack it"
        ) from error
    except OSError as error:
        # Of bz2 and zstd, which have no class of their own; the system's errors have a number,
        # EINVAL for a place outside of the file.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise ValueError(f"{path} is damaged or cut short ({error}): copy it again") from error


def open_packed(path: Path) -> IO[bytes]:
    """The contents of a file as a binary stream: plain, .gz, .xz, .bz2, .zst, single-file .zip."""
    suffix = path.suffix.lower()
    if suffix in OPENERS:
        if path.stat().st_size == 0:
            raise EOFError("it is empty")
        return OPENERS[suffix](path, "rb")
    if suffix != ".zip":
        return path.open("rb")
    archive = zipfile.ZipFile(path)
    members = [
        info for info in archive.infolist() if not (info.is_dir() or is_inside(info.filename))
    ]
    if len(members) != 1:
        raise ValueError(f"{path} holds {len(members)} files instead of one: unpack it first")
    return open_member(archive, members[0], path)


def is_inside(name: str) -> bool:
    """Whether a member of an archive is hidden, or lies in a folder that is."""
    return any(is_hidden(part) for part in name.split("/") if part not in ("", ".", ".."))


def open_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> IO[bytes]:
    """A member of a zip as a binary stream; ValueError for one that wants a password."""
    if member.flag_bits & 1:
        raise ValueError(f"{path} is encrypted: unpack it with its password first")
    return archive.open(member)
