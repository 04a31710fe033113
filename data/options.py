"""What a build of shards depends on: corpus, source, vocabulary, and the corpus's own options."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from data.common.values import did_you_mean, require_ranges
from data.tokenizers.registry import HuggingFaceTokenizer, Tokenizer, description_of
from data.tokenizers.subwords import LEAST_SIZE, MOST_SIZE
from data.tokenizers.tokenizer import DESCRIPTION

TEXT_KINDS = ("bytes", "sentencepiece", "words")
# For each corpus the vocabularies it can have, its own choice first; text can have hf besides.
VOCABULARIES: dict[str, tuple[str, ...]] = {
    "pystdlib": ("bytes", "sentencepiece"),
    "text": TEXT_KINDS,
    "enwik8": ("bytes", "sentencepiece"),
    "wikitext": ("words", "sentencepiece", "bytes"),
    "pg19": ("sentencepiece", "bytes"),
    "audio": ("mulaw",),
}
HUB = "hf"
"""The kind of a tokenizer that one has; `hf:NAME` names it."""
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
    vocabulary: str | None = None
    """What a token is: bytes, words, sentencepiece, or `hf:FOLDER` for the tokenizer.json of a
    folder or of a name on the Hugging Face hub; null is that of vocabulary_from, else the corpus's
    own choice: words for wikitext, sentencepiece for pg19, mu-law levels for audio, else bytes."""
    vocabulary_size: Annotated[int, Field(ge=LEAST_SIZE, le=MOST_SIZE)] | None = None
    """Number of SentencePiece tokens; null is 32,000."""
    vocabulary_sample: Annotated[int, Field(ge=1000)] | None = None
    """Bytes of training text that SentencePiece learns from; null is 50,000,000."""
    vocabulary_method: Literal["unigram", "bpe"] | None = None
    """How SentencePiece learns; null is unigram."""
    vocabulary_from: Path | None = None
    """Shards or run whose vocabulary is used instead of making one."""
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
        known = [*VOCABULARIES[self.corpus], *([HUB] if self.corpus != "audio" else [])]
        if self.vocabulary is not None and (self.kind not in known or self.vocabulary == "hf:"):
            choices = " or ".join(known).replace(HUB, "hf:FOLDER")
            raise ValueError(
                f"corpus {self.corpus} cannot have the vocabulary {self.vocabulary}: choose "
                f"{choices}"
            )
        for option in TRAINING_OPTIONS:
            if self.kind != "sentencepiece":
                self._refuse(option, f"the vocabulary {self.kind}")
            if self.vocabulary_from is not None:
                self._refuse(option, "vocabulary_from")
        if self.kind == "mulaw" or self.vocabulary == "bytes":
            self._refuse("vocabulary_from", f"the vocabulary {self.kind}")
        if self.hub_name is not None:
            self._refuse("vocabulary_from", f"the vocabulary {self.vocabulary}")
        require_ranges(self)

    def _refuse(self, option: str, where: str) -> None:
        """ValueError if an option was given that has no effect."""
        default = next(field.default for field in fields(self) if field.name == option)
        if getattr(self, option) != default:
            raise ValueError(f"{option} has no effect with {where}: leave it out")

    @property
    def kind(self) -> str:
        """The kind of vocabulary: chosen, that of `vocabulary_from`, or the corpus's own."""
        if self.vocabulary is not None:
            named = self.vocabulary.startswith(f"{HUB}:")
            return HUB if named else self.vocabulary
        return self._of_others or VOCABULARIES[self.corpus][0]

    @property
    def _of_others(self) -> str | None:
        """The kind of vocabulary that `vocabulary_from` has, if it is at hand."""
        if self.vocabulary_from is None or self.corpus == "audio":
            return None
        folder = self.vocabulary_from / "vocabulary"
        return description_of(folder).kind if (folder / DESCRIPTION).is_file() else None

    @property
    def hub_name(self) -> str | None:
        """The folder or name of the tokenizer that `hf:NAME` says."""
        given = self.vocabulary or ""
        return given.removeprefix(f"{HUB}:") if given.startswith(f"{HUB}:") else None

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
        elif self.kind == HUB:
            tokenizer = self.tokenizer()
            content |= {"tokenizer": tokenizer.hash, "rows": tokenizer.size}
        return content

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that `hf:NAME` names; ValueError where there is none."""
        if self.hub_name is None:
            raise ValueError("the vocabulary hf names no tokenizer: give hf:FOLDER, with its path")
        return HuggingFaceTokenizer.read(self.hub_name)
