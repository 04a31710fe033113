"""From a config to a corpus that can be read: the entry point of all readers."""

from pathlib import Path

from data.corpora.enwik8 import open_enwik8
from data.corpora.local import existing
from data.corpora.pystdlib import library_files, open_pystdlib
from data.corpora.text import find_files, open_text
from data.documents import Source
from data.options import DataConfig


def open_source(config: DataConfig, work: Path) -> Source:
    """Find a corpus and list its parts; unpacked copies go into the folder `work`.

    ValueError when the source is missing, empty, or not what it is said to be.
    """
    match config.corpus:
        case "pystdlib":
            return open_pystdlib()
        case "enwik8":
            return open_enwik8(config.source, config.prefix, work)
        case _:
            return open_text(config.source)


def fingerprint(config: DataConfig) -> list[list[str | int]]:
    """Name, size and time of change of each source file: cheap, to notice that one has changed."""
    if config.corpus == "pystdlib":
        root, paths = library_files()
    else:
        root, paths = source_files(config)
    return [
        [path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns]
        for path in paths
    ]


def source_files(config: DataConfig) -> tuple[Path, list[Path]]:
    """The folder and the files that a config's source names."""
    if config.corpus == "text":
        return find_files(config.source)
    path = existing(config.source, config.corpus, "a file or folder")
    if path.is_dir():
        return path, sorted(each for each in path.rglob("*") if each.is_file())
    return path.parent, [path]
