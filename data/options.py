"""What a build of shards depends on: corpus, source, vocabulary, and the corpus's own options."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from data.common.values import did_you_mean, require_ranges
from data.tokenizers.registry import description_of
from data.tokenizers.subwords import LEAST_SIZE, MOST_SIZE
from data.tokenizers.tokenizer import DESCRIPTION

VocabularyKind = Literal["bytes", "words", "sentencepiece"]

TEXT_KINDS = ("bytes", "sentencepiece", "words")
# For each corpus the vocabularies it can have, its own choice first.
VOCABULARIES: dict[str, tuple[str, ...]] = {
    "pystdlib": ("bytes", "sentencepiece"),
    "text": TEXT_KINDS,
    "enwik8": ("bytes", "sentencepiece"),
    "wikitext": ("words", "sentencepiece", "bytes"),
    "pg19": ("sentencepiece", "bytes"),
    "audio": ("mulaw",),
}
# Options that mean something for one corpus only.
CORPUS_OPTIONS = {
    "prefix": "enwik8",
    "column": "text",
    "checksums": "pg19",
    "checksums_mismatch": "pg19",
}
TRAINING_OPTIONS = ("vocabulary_size", "vocabulary_sample", "vocabulary_method")


@dataclass(frozen=True)
class DataConfig:
    """Corpus, vocabulary and the folder of the shards."""

    corpus: str
    """pystdlib, text, enwik8, wikitext, pg19 or audio."""
    shards: Path
    """Folder of the token shards: written by data.prepare, read by everything else."""
    source: str | None = None
    """Local file, folder or glob; `hub` for the benchmark's copy on the Hugging Face hub, or
    `hub:OWNER/NAME[:CONFIG]` for any data set there; pystdlib needs none."""
    vocabulary: VocabularyKind | None = None
    """What a token is; null is the corpus's own choice: words for wikitext, sentencepiece for pg19,
    mu-law levels for audio, else bytes."""
    vocabulary_size: Annotated[int, Field(ge=LEAST_SIZE, le=MOST_SIZE)] | None = None
    """Number of SentencePiece tokens; null is 32,000."""
    vocabulary_sample: Annotated[int, Field(ge=1000)] | None = None
    """Bytes of training text that SentencePiece learns from; null is 50,000,000."""
    vocabulary_method: Literal["unigram", "bpe"] | None = None
    """How SentencePiece learns; null is unigram."""
    vocabulary_from: Path | None = None
    """Shards whose vocabulary is used instead of making one."""
    column: str | None = None
    """Column of the text in .jsonl, .parquet and hub data sets; null is text."""
    drop_duplicates: bool = False
    """Leave documents whose very text is also in validation or test out of training."""
    prefix: bool = False
    """Accept a shorter beginning of Enwik8, which is then called enwik8-prefix everywhere."""
    checksums: Path | None = None
    """CSV file of ID, ..., SHA-256 that PG-19's books must match; the column before the last may be
    their lengths in bytes."""
    checksums_mismatch: Literal["refuse", "warn"] = "refuse"
    """What to do about books that differ from checksums or are not in it: warn names them, goes on
    and writes them into the manifest."""

    def __post_init__(self) -> None:
        if self.corpus not in VOCABULARIES:
            raise ValueError(
                f"unknown corpus {self.corpus!r}; {did_you_mean(self.corpus, VOCABULARIES)}"
            )
        for option, corpus in CORPUS_OPTIONS.items():
            if self.corpus != corpus:
                self._refuse(option, f"corpus {self.corpus}")
        if self.checksums is None:
            self._refuse("checksums_mismatch", "no checksums")
        if self.corpus == "pystdlib":
            self._refuse("source", "corpus pystdlib")
        if self.vocabulary is not None and self.vocabulary not in VOCABULARIES[self.corpus]:
            raise ValueError(
                f"corpus {self.corpus} cannot have the vocabulary {self.vocabulary}: choose "
                f"{' or '.join(VOCABULARIES[self.corpus])}"
            )
        for option in TRAINING_OPTIONS:
            if self.kind != "sentencepiece":
                self._refuse(option, f"the vocabulary {self.kind}")
            if self.vocabulary_from is not None:
                self._refuse(option, "vocabulary_from")
        if self.kind in ("bytes", "mulaw"):
            self._refuse("vocabulary_from", f"the vocabulary {self.kind}")
        require_ranges(self)

    def _refuse(self, option: str, where: str) -> None:
        """ValueError if an option was given that has no effect."""
        default = next(field.default for field in fields(self) if field.name == option)
        if getattr(self, option) != default:
            raise ValueError(f"{option} has no effect with {where}: leave it out")

    @property
    def kind(self) -> str:
        """The kind of vocabulary, the corpus's own if none was chosen."""
        return self.vocabulary or VOCABULARIES[self.corpus][0]

    @property
    def size(self) -> int:
        """Number of SentencePiece tokens."""
        return self.vocabulary_size or 32_000

    @property
    def sample(self) -> int:
        """Bytes that SentencePiece learns from."""
        return self.vocabulary_sample or 50_000_000

    @property
    def method(self) -> Literal["unigram", "bpe"]:
        """How SentencePiece learns."""
        return self.vocabulary_method or "unigram"

    def content(self) -> dict[str, Any]:
        """What the shards depend on besides the source; for the manifest and for comparison."""
        content: dict[str, Any] = {"corpus": self.corpus, "vocabulary": self.kind}
        if self.drop_duplicates:
            content["drop_duplicates"] = True
        if self.corpus == "text":
            content["column"] = self.column or "text"
        if self.corpus == "enwik8":
            content["prefix"] = self.prefix
        if self.vocabulary_from is not None:
            file = self.vocabulary_from / "vocabulary" / DESCRIPTION
            if not file.is_file():
                raise ValueError(f"{self.vocabulary_from} holds no shards with a vocabulary")
            content["vocabulary_from"] = description_of(file.parent).hash
        elif self.kind == "sentencepiece":
            content |= {"size": self.size, "sample": self.sample, "method": self.method}
        return content
