"""What a build of shards depends on: corpus, source, vocabulary, and the corpus's own options."""

import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

VocabularyKind = Literal["bytes", "words", "sentencepiece"]

DEFAULT_VOCABULARY: dict[str, VocabularyKind] = {
    "pystdlib": "bytes",
    "text": "bytes",
    "enwik8": "bytes",
}
# Options that mean something for some corpora only.
CORPUS_OPTIONS = {
    "prefix": {"enwik8"},
}


@dataclass(frozen=True)
class DataConfig:
    """Corpus, vocabulary and the folder of the shards."""

    corpus: str
    """pystdlib, text or enwik8."""
    shards: Path
    """Folder of the token shards: written by data.prepare, read by everything else."""
    source: str | None = None
    """Local file, folder or glob; pystdlib needs none."""
    vocabulary: VocabularyKind | None = None
    """What a token is; null is the corpus's own choice: bytes."""
    prefix: bool = False
    """Accept a shorter beginning of Enwik8, which is then called enwik8-prefix everywhere."""

    def __post_init__(self) -> None:
        if self.corpus not in DEFAULT_VOCABULARY:
            near = difflib.get_close_matches(self.corpus, DEFAULT_VOCABULARY, n=1, cutoff=0.0)
            raise ValueError(
                f"unknown corpus {self.corpus!r}; did you mean {near[0]}? "
                f"(known: {', '.join(DEFAULT_VOCABULARY)})"
            )
        for field in fields(self):
            corpora = CORPUS_OPTIONS.get(field.name, {self.corpus})
            if getattr(self, field.name) != field.default and self.corpus not in corpora:
                raise ValueError(
                    f"{field.name} has no effect with corpus {self.corpus}; leave it out"
                )

    @property
    def vocabulary_kind(self) -> VocabularyKind:
        """The kind of vocabulary, the corpus's own if none was chosen."""
        return self.vocabulary or DEFAULT_VOCABULARY[self.corpus]

    def content(self) -> dict[str, Any]:
        """The options that decide what the shards hold: all but the places of things."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["shards"], values["source"]
        return values | {"vocabulary": self.vocabulary_kind}
