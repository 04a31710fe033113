"""Members of .zip and .tar archives, unpacked to plain files under numbers of their own."""

import os
import shutil
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data.common.files import read_json, remove_folder, write_json
from data.corpora.local import (
    OPENERS,
    ending,
    is_inside,
    naming_damage,
    open_member,
    open_packed,
    place,
)

TAR_SHORT = {".tgz": ".gz", ".tbz": ".bz2", ".tbz2": ".bz2", ".txz": ".xz", ".tzst": ".zst"}
INDEX = "index.json"


@dataclass(frozen=True)
class Member:
    """A file of an archive: its name there, and where it lies now."""

    name: str
    path: Path


def is_archive(name: str) -> bool:
    """Whether a name is that of a .zip, a .tar, or a .tar that is packed."""
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    if suffixes and suffixes[-1] in OPENERS:
        suffixes.pop()
        return bool(suffixes) and suffixes[-1] == ".tar"
    return bool(suffixes) and suffixes[-1] in (".zip", ".tar", *TAR_SHORT)


def unpack(
    path: Path, folder: Path, wanted: Callable[[str], bool]
) -> tuple[list[Member], Counter[str]]:
    """Unpack an archive's wanted files once below `folder`.

    Returns the members in the archive's order, and how many were passed over, by what they are. No
    name of a member becomes a path: `../x` and two members of one name do no harm. ValueError for
    an archive that is damaged, encrypted, larger than the disk, or that holds archives.
    """
    target = place(path, folder)
    if not (target / INDEX).is_file():
        remove_folder(target)
        target.mkdir(parents=True)
        names: list[str] = []
        passed: Counter[str] = Counter()
        room = shutil.disk_usage(target).free
        with naming_damage(path):
            for name, size, stream in members(path, wanted, passed):
                room -= size
                if room < 0:
                    raise ValueError(
                        f"{path} would not fit on the disk with {folder} unpacked: make room"
                    )
                with (target / numbered(len(names), name)).open("wb") as file:
                    shutil.copyfileobj(stream, file, 1 << 20)
                names.append(name)
        write_json(target / INDEX, {"names": names, "passed": passed})
    index = read_json(target / INDEX)
    names = index["names"]
    found = [Member(name, target / numbered(i, name)) for i, name in enumerate(names)]
    return found, Counter(index["passed"])


def numbered(number: int, name: str) -> str:
    """The name of an unpacked file: a number, and the ending that says what it holds."""
    suffix = ending(name)
    return f"{number}{suffix if suffix.startswith('.') else ''}"


Found = Iterator[tuple[str, int, IO[bytes]]]


def members(path: Path, wanted: Callable[[str], bool], passed: Counter[str]) -> Found:
    """Name, size and contents of each wanted file of an archive; counts the others in `passed`."""
    is_zip = path.suffix.lower() == ".zip"
    for name, size, kind, stream in (zip_members if is_zip else tar_members)(path):
        if kind:
            passed[kind] += 1
        elif is_inside(name):
            passed["hidden"] += 1
        elif is_archive(name):
            raise ValueError(
                f"{path} holds an archive, {name}, and archives in archives are not read: unpack it"
            )
        elif not wanted(name):
            passed[ending(name)] += 1
        else:
            with stream() as file:
                yield name, size, file


Raw = Iterator[tuple[str, int, str, Callable[[], Any]]]


def zip_members(path: Path) -> Raw:
    """Name, size, what it is if no file, and a way to open each member of a .zip but folders."""
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                kind = "link" if stat.S_ISLNK(info.external_attr >> 16) else ""
                opened = lambda info=info: open_member(archive, info, path)  # noqa: E731
                yield info.filename, info.file_size, kind, opened


def tar_members(path: Path) -> Raw:
    """As `zip_members`, of a .tar; ValueError where it breaks off."""
    with plain_tar(path) as packed:
        watched = Watched(packed)
        with tarfile.open(fileobj=watched, mode="r:") as archive:  # type: ignore[call-overload]
            for info in archive:
                # tarfile would keep them all.
                archive.members = []
                kind = "" if info.isfile() else "link" if info.issym() or info.islnk() else "device"
                opened = lambda info=info: archive.extractfile(info)  # noqa: E731
                if not info.isdir():
                    yield info.name, info.size, kind, opened
        if watched.last.strip(b"\0"):
            # tarfile takes a header that it cannot read for the end.
            raise EOFError("its end is missing, or a header is damaged")


def plain_tar(path: Path) -> IO[bytes]:
    """The bytes of a .tar, whatever packs it."""
    packing = TAR_SHORT.get(path.suffix.lower())
    return open_packed(path) if packing is None else OPENERS[packing](path, "rb")


class Watched:
    """A stream that can be read and moved forwards, and knows what was read last."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.last = stream, b""
        self.position = 0

    def read(self, size: int = -1) -> bytes:
        """As of any stream."""
        self.last = self.stream.read(size)
        self.position += len(self.last)
        return self.last

    def tell(self) -> int:
        """How much was read or passed over."""
        return self.position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Move forwards by reading, since not every packed stream can do it otherwise."""
        assert whence == os.SEEK_SET
        if position < self.position:
            raise EOFError("its parts are out of order")
        while self.position < position and self.read(min(position - self.position, 1 << 20)):
            pass
        return self.position
