"""From a config to a corpus that can be read: the entry point of all readers."""

from pathlib import Path

from data.corpora.audio import open_audio
from data.corpora.enwik8 import ON_HUB as ENWIK8_ON_HUB
from data.corpora.enwik8 import open_enwik8
from data.corpora.pg19 import ON_HUB as PG19_ON_HUB
from data.corpora.pg19 import open_pg19
from data.corpora.pystdlib import open_pystdlib
from data.corpora.text import open_hub_text, open_text
from data.corpora.wikitext import ON_HUB as WIKITEXT_ON_HUB
from data.corpora.wikitext import open_wikitext
from data.documents import Source
from data.hub import HubName, parse_hub
from data.options import DataConfig

ON_HUB = {"enwik8": ENWIK8_ON_HUB, "wikitext": WIKITEXT_ON_HUB, "pg19": PG19_ON_HUB}


def hub_of(config: DataConfig) -> HubName | None:
    """The hub data set that a config's source means, if it means one."""
    return parse_hub(config.source, ON_HUB.get(config.corpus))


def open_source(config: DataConfig, work: Path) -> Source:
    """Find a corpus and list its parts; unpacked copies go into the folder `work`.

    ValueError when the source is missing, empty, or not what it is said to be.
    """
    hub = hub_of(config)
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
