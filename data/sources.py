"""From a config to a corpus that can be read: the entry point of all readers."""

from pathlib import Path

from data.corpora.audio import open_audio
from data.corpora.enwik8 import ON_HUB as ENWIK8_ON_HUB
from data.corpora.enwik8 import open_enwik8
from data.corpora.local import existing
from data.corpora.pg19 import ON_HUB as PG19_ON_HUB
from data.corpora.pg19 import open_pg19
from data.corpora.pystdlib import library_files, open_pystdlib
from data.corpora.text import find_files, open_hub_text, open_text
from data.corpora.wikitext import ON_HUB as WIKITEXT_ON_HUB
from data.corpora.wikitext import open_wikitext
from data.documents import Source
from data.hub import parse_hub
from data.options import DataConfig

ON_HUB = {"enwik8": ENWIK8_ON_HUB, "wikitext": WIKITEXT_ON_HUB, "pg19": PG19_ON_HUB}


def open_source(config: DataConfig, work: Path) -> Source:
    """Find a corpus and list its parts; unpacked copies go into the folder `work`.

    ValueError when the source is missing, empty, or not what it is said to be.
    """
    hub = parse_hub(config.source, ON_HUB.get(config.corpus))
    match config.corpus:
        case "pystdlib":
            return open_pystdlib()
        case "enwik8":
            return open_enwik8(config.source, hub, config.prefix, work)
        case "wikitext":
            return open_wikitext(config.source, hub, work)
        case "pg19":
            return open_pg19(config.source, hub, config.checksums)
        case "audio":
            return open_audio(config.source)
        case _:
            column = config.column or "text"
            unit = "word_perplexity" if config.kind == "words" else "bits_per_byte"
            if hub:
                return open_hub_text(hub, column, unit)
            return open_text(config.source, column, unit, work)


def fingerprint(config: DataConfig) -> list[list[str | int]]:
    """Name, size and time of change of each source file: cheap, to notice that one has changed."""
    if parse_hub(config.source, ON_HUB.get(config.corpus)):
        return [[str(config.source), 0, 0]]
    root, paths = source_files(config)
    states = [(path, path.stat()) for path in paths]
    return [
        [path.relative_to(root).as_posix(), state.st_size, state.st_mtime_ns]
        for path, state in states
    ]


def source_files(config: DataConfig) -> tuple[Path, list[Path]]:
    """The folder and the files that a config's source names."""
    if config.corpus == "pystdlib":
        return library_files()
    if config.corpus == "text":
        return find_files(config.source)
    path = existing(config.source, config.corpus, "a file or folder")
    if path.is_dir():
        return path, sorted(each for each in path.rglob("*") if each.is_file())
    return path.parent, [path]
