"""From a config to a corpus that can be read: the entry point of all readers."""

from pathlib import Path

from data.corpora import audio, enwik8, pg19, pystdlib, text, wikitext
from data.corpora.checksums import Checksums, read_checksums
from data.documents import Source
from data.hub import HubName, parse_hub
from data.options import DataConfig

ON_HUB = {"enwik8": enwik8.ON_HUB, "wikitext": wikitext.ON_HUB, "pg19": pg19.ON_HUB}
WANTED = {
    "enwik8": enwik8.WANTED,
    "wikitext": wikitext.WANTED,
    "pg19": pg19.WANTED,
    "audio": audio.WANTED,
}


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
