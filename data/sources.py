"""From a config to a corpus that can be read, and the files that it was read from."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.common.files import hash_file, hash_json
from data.common.integrity import read_sealed, write_sealed
from data.common.progress import Progress
from data.common.schema import Count, Record, Sha256, as_record
from data.corpora import audio, enwik8, pg19, pystdlib, text, wikitext
from data.corpora.checksums import Checksums, read_checksums
from data.corpora.hub import HubName, parse_hub
from data.corpora.local import Listing
from data.documents import Source, readable
from data.manifest import AGAIN
from data.options import DataConfig
from data.pool import work_in_pool

ON_HUB = {"enwik8": enwik8.ON_HUB, "wikitext": wikitext.ON_HUB, "pg19": pg19.ON_HUB}
FINDERS: dict[str, Callable[[str | None], Listing]] = {
    "pystdlib": pystdlib.find_files,
    "text": text.find_files,
    "enwik8": enwik8.find_files,
    "wikitext": wikitext.find_files,
    "pg19": pg19.find_files,
    "audio": audio.find_files,
}
"""What lists the files that a source of each corpus names."""
SOURCE_FILES = "source.json"


class RecordedFile(Record):
    """A file as it was when it was read."""

    name: str
    bytes: Count
    changed: int
    sha256: Sha256


class SourceFiles(Record):
    """source.json."""

    files: list[RecordedFile]


@dataclass(frozen=True)
class SourceFile:
    """A file of a source, as it is now.

    name: of its path below the source's folder; it can be printed and stored, whatever bytes the
    path has. changed: time in nanoseconds; state: what the system changes with every write,
    whatever times a program sets: time of the last change, and inode.
    """

    path: Path
    name: str
    bytes: int
    changed: int
    state: tuple[int, int]

    def record(self) -> dict[str, Any]:
        """What is kept of it."""
        return {"name": self.name, "bytes": self.bytes, "changed": self.changed}


def hub_of(config: DataConfig) -> HubName | None:
    """The hub data set that a config's source means, if it means one."""
    return parse_hub(config.source, ON_HUB.get(config.corpus))


def checksums_of(config: DataConfig) -> Checksums | None:
    """The list of checksums that a config names, if it names one; ValueError if it is none."""
    if config.checksums is None:
        return None
    return read_checksums(config.checksums, config.checksums_mismatch == "refuse")


def open_source(config: DataConfig, work: Path) -> Source:
    """Find a corpus and list its parts; unpacked copies go into the folder `work`.

    ValueError when the source is missing, empty, or not what it is said to be.
    """
    hub = hub_of(config)
    if hub and config.corpus == "audio":
        raise ValueError(f"corpus audio is not read from the hub; it wants {audio.WANTED}")
    match config.corpus:
        case "pystdlib":
            return pystdlib.open_pystdlib()
        case "enwik8":
            return enwik8.open_enwik8(config.source, hub, config.prefix, work)
        case "wikitext":
            return wikitext.open_wikitext(config.source, hub, work)
        case "pg19":
            return pg19.open_pg19(config.source, hub, checksums_of(config), work)
        case "audio":
            return audio.open_audio(config.source)
        case _:
            column = config.column or "text"
            unit = "word_perplexity" if config.kind == "words" else "bits_per_byte"
            if hub:
                return text.open_hub_text(hub, column, unit)
            return text.open_text(config.source, column, unit, work)


def list_files(config: DataConfig) -> list[SourceFile]:
    """The files that a config's source names, sorted; none for a hub data set."""
    if hub_of(config):
        return []
    found = FINDERS[config.corpus](config.source)
    files = []
    for path in found.paths:
        name, state = readable(path.relative_to(found.root).as_posix()), path.stat()
        marks = int(state.st_ctime_ns), int(state.st_ino)
        files.append(SourceFile(path, name, state.st_size, state.st_mtime_ns, marks))
    return files


def require_unchanged(config: DataConfig, files: list[SourceFile]) -> None:
    """ValueError if the files that a source names are not as they were when they were listed."""
    now = set(list_files(config))
    if changed := sorted(file.name for file in now ^ set(files)):
        raise ValueError(
            f"{changed[0]} has changed while it was read: call again when the source is at rest"
        )


def hash_files(files: list[SourceFile], workers: int) -> dict[str, str]:
    """SHA-256 of each file by name."""
    total = sum(file.bytes for file in files)
    hashes: dict[str, str] = {}
    if not files:
        return hashes
    # Starting processes takes longer than hashing a little.
    workers = workers if total > 1 << 28 else 1
    with Progress("hash the source", total, "B", scale=True) as progress:
        for index, digest in work_in_pool(workers, hash_one, None, enumerate(files)):
            hashes[files[index].name] = digest
            progress.update(files[index].bytes)
    return hashes


def hash_one(_: None, index: int, file: SourceFile) -> tuple[int, str]:
    """The file's number and SHA-256."""
    return index, hash_file(file.path)


def write_source(folder: Path, files: list[SourceFile], workers: int) -> str:
    """Record files and their hashes in `folder`, unless it has them; return the hash of it all."""
    path = folder / SOURCE_FILES
    if not path.exists():
        hashes = hash_files(files, workers)
        found = [file.record() | {"sha256": hashes[file.name]} for file in files]
        write_sealed(path, {"files": found})
    return hash_source(read_source(folder))


def read_source(folder: Path) -> list[RecordedFile]:
    """What `write_source` recorded; ValueError if it is missing or has changed."""
    path = folder / SOURCE_FILES
    if not path.is_file():
        raise ValueError(f"{path} is missing; {AGAIN}")
    value = read_sealed(path, AGAIN)
    try:
        # A list alone is how it was written before it had a hash.
        return as_record(SourceFiles, {"files": value} if isinstance(value, list) else value).files
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {AGAIN}") from None


def hash_source(recorded: list[RecordedFile]) -> str:
    """The hash of all that was read: of names and hashes of files."""
    return hash_json([[file.name, file.sha256] for file in recorded])


def same_source(recorded: list[RecordedFile], files: list[SourceFile]) -> bool:
    """Whether files are those recorded; one with another time of change is hashed to tell."""
    if [(file.name, file.bytes) for file in recorded] != [(f.name, f.bytes) for f in files]:
        return False
    return all(
        old.changed == new.changed or old.sha256 == hash_file(new.path)
        for old, new in zip(recorded, files, strict=True)
    )
