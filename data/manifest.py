"""manifest.json of a shards folder: what the shards hold, and the hash of every file of theirs."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue

from data.common.files import hash_json
from data.common.integrity import read_sealed
from data.common.schema import Count, Record, Sha256, Size, as_record

MANIFEST = "manifest.json"
FORMAT = 1
AGAIN = "prepare the shards again"

Unit = Literal["bits_per_byte", "bits_per_sample", "word_perplexity"]
SplitName = Annotated[str, Field(pattern="^(train|validation|test)$")]


class FileFacts(Record):
    """A file as it was written."""

    bytes: Count
    sha256: Sha256


class SplitFacts(Record):
    """What a split holds."""

    documents: Count
    tokens: Size
    bytes: Count
    """Of the source text, as are words."""
    words: Count
    denominator_words: Size | None
    """The published number of words when this is the full official split."""
    files: dict[str, FileFacts]


class ChecksumFacts(Record):
    """What came of holding texts against a list of checksums."""

    list: Sha256
    """Of the list itself."""
    required: bool
    """Whether texts that differ are refused."""
    texts: Count
    differ: dict[str, str]
    """How texts differ, by name."""


class SourceFacts(Record):
    """What the text was read from; a corpus adds its own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    sha256: Sha256
    """Of names and hashes of all files."""
    hub: str | None = None
    config: str | None = None
    revision: str | None = None
    checksums: ChecksumFacts | None = None


class DuplicateFacts(Record):
    """Documents whose very text is there twice."""

    held_out: Count
    """Documents of training that are also in validation or test."""
    repeated: Count
    """Documents of training that repeat another one of training."""
    dropped: Count = 0
    """Documents that were also held out, and left out of training for that."""
    examples: list[list[str]] = Field(default_factory=list)
    """Names of a few of these, in training and held out."""


class VocabularyFacts(Record):
    """Which vocabulary the tokens are of."""

    kind: str
    size: Size
    hash: Sha256


class Manifest(Record):
    """manifest.json."""

    format: int
    corpus: str
    unit: Unit
    options: dict[str, JsonValue]
    """The part of the config that decides what the shards hold."""
    source: SourceFacts
    splits: Annotated[dict[SplitName, SplitFacts], Field(min_length=1)]
    versions: dict[str, str]
    vocabulary: VocabularyFacts
    lossless: dict[SplitName, bool] = Field(default_factory=dict)
    """Of words: whether the tokens of a split give its text back; not noted by earlier versions."""
    duplicates: DuplicateFacts | None = None
    """None in shards of earlier versions."""
    hash: Sha256
    """Of what the shards say; see content_hash."""


def content_hash(manifest: dict[str, Any]) -> str:
    """Hash of what the shards say: corpus, unit, vocabulary and every split's files and counts."""
    keys = ("format", "corpus", "unit", "vocabulary", "splits")
    return hash_json({key: manifest[key] for key in keys})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a shards folder.

    Raises:
        ValueError: it is missing, of another format, changed, or a field is not as it must be.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder} holds no shards; make them with python -m data.prepare")
    value = read_sealed(path, AGAIN)
    if isinstance(value, dict) and value.get("format", FORMAT) != FORMAT:
        raise ValueError(f"{folder} has shards of another format; {AGAIN}")
    try:
        manifest = as_record(Manifest, value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {AGAIN}") from None
    if content_hash(value) != manifest.hash:
        raise ValueError(f"{path} does not match its hash; {AGAIN}")
    return manifest
