"""What a config says of shards that are there already: it must be so, for it is written down."""

from pathlib import Path
from typing import Any

from data.corpora.checksums import read_checksums
from data.options import DataConfig
from data.shards import Shards
from data.sources import SOURCE_FILES, hub_of, list_files, read_source
from data.tokenizers.registry import description_of
from data.tokenizers.tokenizer import DESCRIPTION


def require_stated(config: DataConfig, shards: Shards) -> None:
    """ValueError if what a config says of corpus, vocabulary or source is not so of its shards.

    What is left out says nothing; a source or vocabulary that is not at hand cannot be compared.
    """
    options, made = shards.manifest.options, shards.manifest.vocabulary
    facts: dict[str, tuple[Any, Any]] = {
        "corpus": (config.corpus, options.get("corpus", config.corpus)),
        "vocabulary": (config.vocabulary and config.kind, made.kind),
        "vocabulary_size": (config.vocabulary_size, made.size),
        "vocabulary_sample": (config.vocabulary_sample, options.get("sample")),
        "vocabulary_method": (config.vocabulary_method, options.get("method")),
        "column": (config.column, options.get("column")),
        "prefix": (config.prefix or None, options.get("prefix")),
    }
    for name, (said, there) in facts.items():
        if said not in (None, there):
            held = f"no {name}" if there is None else f"the {name} {there}"
            raise ValueError(
                f"{shards.path} was prepared with {held}, not data.{name} {said}: leave that out, "
                "or give the data.shards that are meant"
            )
    for name, same in (
        ("vocabulary", same_tokenizer(config, made.hash)),
        ("vocabulary_from", same_vocabulary(config.vocabulary_from, made.hash)),
        ("source", same_origin(config, shards)),
        ("checksums", same_checksums(config.checksums, shards)),
    ):
        if not same:
            raise ValueError(
                f"{shards.path} was not prepared with data.{name} {getattr(config, name)}: leave "
                "that out, or give the data.shards that are meant"
            )


def same_vocabulary(folder: Path | None, made: str) -> bool:
    """Whether a folder of shards has this vocabulary, as far as it is at hand."""
    if folder is None or not (folder / "vocabulary" / DESCRIPTION).is_file():
        return True
    return description_of(folder / "vocabulary").hash == made


def same_tokenizer(config: DataConfig, made: str) -> bool:
    """Whether the tokenizer that a config names is that of shards, as far as it is at hand."""
    if config.hub_name is None or not Path(config.hub_name).is_dir():
        return True
    return config.tokenizer().hash == made


def same_origin(config: DataConfig, shards: Shards) -> bool:
    """Whether shards may come from a config's source: files may have changed since, but some must
    have the names of those that were read.
    """
    if config.source is None:
        return True
    facts, hub = shards.manifest.source, hub_of(config)
    if hub is not None or facts.hub is not None:
        return hub is not None and hub.made(facts)
    try:
        names = {file.name for file in list_files(config)}
    except (ValueError, OSError):
        return True
    if not (shards.path / SOURCE_FILES).is_file():
        return True
    recorded = {file.name for file in read_source(shards.path)}
    return not recorded or not names or bool(names & recorded)


def same_checksums(path: Path | None, shards: Shards) -> bool:
    """Whether the texts were compared with a list, as far as that is at hand."""
    checked = shards.manifest.source.checksums
    if path is None:
        return True
    if checked is None or not path.is_file():
        return checked is not None
    return bool(checked.list == read_checksums(path).sha256)
