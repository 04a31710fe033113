"""The files that shards were made from: to notice changes, and for the manifest."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.common.files import hash_file, hash_json, read_json, write_json
from data.common.progress import Progress
from data.corpora.local import existing
from data.corpora.pystdlib import library_files
from data.corpora.text import find_files
from data.options import DataConfig
from data.pool import Pool
from data.sources import WANTED, hub_of

SOURCE_FILES = "source.json"
# What the readers may read in a folder; other files beside them do not matter.
SUFFIXES = {
    "wikitext": (".tokens", ".raw", ".xz", ".gz", ".parquet"),
    "pg19": (".txt", ".csv", ".parquet"),
    "audio": (".wav",),
}


@dataclass(frozen=True)
class SourceFile:
    """A file by its path below the source's folder; `changed` is a time in nanoseconds."""

    name: str
    bytes: int
    changed: int


def list_files(config: DataConfig) -> tuple[Path, list[SourceFile]]:
    """The folder and the files that a config's source names, sorted; none for a hub data set."""
    if hub_of(config):
        return Path(), []
    root, paths = find(config)
    states = [(path.relative_to(root).as_posix(), path.stat()) for path in paths]
    return root, [SourceFile(name, state.st_size, state.st_mtime_ns) for name, state in states]


def find(config: DataConfig) -> tuple[Path, list[Path]]:
    """The folder and the files that a local source names."""
    if config.corpus == "pystdlib":
        return library_files()
    if config.corpus == "text":
        return find_files(config.source)
    path = existing(config.source, config.corpus, WANTED[config.corpus])
    if not path.is_dir():
        return path.parent, [path]
    suffixes = SUFFIXES.get(config.corpus, ())
    return path, sorted(p for p in path.rglob("*") if p.suffix in suffixes and p.is_file())


def hash_files(root: Path, files: list[SourceFile], workers: int) -> dict[str, str]:
    """SHA-256 of each file by name."""
    total = sum(file.bytes for file in files)
    hashes: dict[str, str] = {}
    if not files:
        return hashes
    # Starting processes takes longer than hashing a little.
    workers = workers if total > 1 << 28 else 1
    with Progress("hash the source", total, "B", scale=True) as progress:
        for index, digest in Pool(workers, hash_one, root).map(enumerate(files)):
            hashes[files[index].name] = digest
            progress.update(files[index].bytes)
    return hashes


def hash_one(root: Path, index: int, file: SourceFile) -> tuple[int, str]:
    """The file's number and SHA-256."""
    return index, hash_file(root / file.name)


def write_source(folder: Path, root: Path, files: list[SourceFile], workers: int) -> str:
    """Record files and their hashes in `folder`, unless it has them; return the hash of it all."""
    path = folder / SOURCE_FILES
    if not path.exists():
        hashes = hash_files(root, files, workers)
        write_json(path, [asdict(file) | {"sha256": hashes[file.name]} for file in files])
    return hash_json([[file["name"], file["sha256"]] for file in read_json(path)])


def same_source(recorded: list[dict[str, Any]], root: Path, files: list[SourceFile]) -> bool:
    """Whether files are those recorded; one with another time of change is hashed to tell."""
    if [(file["name"], file["bytes"]) for file in recorded] != [(f.name, f.bytes) for f in files]:
        return False
    return all(
        old["changed"] == new.changed or old["sha256"] == hash_file(root / new.name)
        for old, new in zip(recorded, files, strict=True)
    )
