"""Token shards: memory-mapped ids, a document index and a manifest with hashes.

A shards folder holds, for each split, `<split>.tokens.npy` (ids, 1-D, uint8, uint16 or uint32),
`<split>.documents.npy` (one record a document, DOCUMENT_DTYPE) and `<split>.names.jsonl` (one line
a document: its name and what else is known of it), beside `vocabulary/` and `manifest.json`
(data/manifest.py).
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from data.documents import SPLITS
from data.manifest import AGAIN, MANIFEST, Manifest, SplitFacts, read_manifest
from data.split_files import (
    DOCUMENT_DTYPE,
    DocumentDetails,
    check_names,
    check_size,
    file_names,
    open_documents,
    open_tokens,
    read_names,
)
from data.tokenizers.registry import Tokenizer, WordTokenizer, load_tokenizer

__all__ = ["DOCUMENT_DTYPE", "MANIFEST", "Shards", "Split", "open_shards"]

BLOCK_TOKENS = 1 << 22


@dataclass(frozen=True)
class Split:
    """One split of a corpus.

    bytes, words: of the source text; unit: what the benchmark reports; denominator_words: the
    published word count when this is the full official split, else None; lossless: whether the
    build found that the tokens give the text back, None where it has not noted that.
    """

    folder: Path
    name: str
    bytes: int
    words: int
    unit: str
    denominator_words: int | None
    shards_hash: str
    vocabulary: Tokenizer
    facts: SplitFacts | None = None
    """What the manifest says; none: the split is in memory alone."""
    lossless: bool | None = None
    first: int | None = None
    """Documents of which it is the beginning of a larger one, in memory alone; None: all of it."""

    @cached_property
    def tokens(self) -> np.ndarray:
        """Ids of the whole split, 1-D, memory-mapped and read-only; ValueError if damaged."""
        return self.open_tokens()

    @cached_property
    def documents(self) -> np.ndarray:
        """One record a document, in order: offset and number of tokens, bytes and words."""
        return self.open_documents()

    @cached_property
    def details(self) -> list[DocumentDetails]:
        """For each document its name and, where known, title, year and the like."""
        return read_names(self.folder / file_names(self.name)[2])

    @cached_property
    def exact(self) -> bool:
        """Whether the tokens give the source text back, byte for byte.

        Only then are there bits per byte or character: what a vocabulary of words does not know,
        and how words were spaced, nobody has predicted; nor what somebody's tokenizer drops; and
        mu-law rounds.
        """
        if self.lossless is None and self.vocabulary.kind in ("words", "hf"):
            size = self.vocabulary.token_bytes
            blocks = range(0, len(self.tokens), BLOCK_TOKENS)
            decoded = (size[self.tokens[at : at + BLOCK_TOKENS]].sum() for at in blocks)
            return int(sum(decoded)) == self.bytes
        return self.lossless is not False and self.vocabulary.kind != "mulaw"

    @cached_property
    def unknown_words(self) -> float | None:
        """Share of the words that are the unknown word; None but for a vocabulary of words."""
        vocabulary = self.vocabulary
        if not isinstance(vocabulary, WordTokenizer):
            return None
        words = len(self.tokens) - np.count_nonzero(self.tokens == vocabulary.start)
        return int(np.count_nonzero(self.tokens == vocabulary.unknown)) / max(int(words), 1)

    @cached_property
    def names(self) -> list[str]:
        """The documents' names."""
        return [details.name for details in self.details]

    def beginning(self, documents: int | None) -> "Split":
        """The split of its first documents; itself where it has no more, or none: no number."""
        if documents is None or documents >= len(self.documents):
            return self
        index = self.documents[:documents]
        made = replace(
            self,
            bytes=int(index["bytes"].sum()),
            words=int(index["words"].sum()),
            denominator_words=None,
            facts=None,
            lossless=self.exact,
            first=documents,
        )
        # What a split on disk reads when it is first asked for.
        tokens = self.tokens[: int(index["tokens"].sum())]
        vars(made).update(tokens=tokens, documents=index, details=self.details[:documents])
        return made

    def open_tokens(self, anew: bool = False) -> np.ndarray:
        """See that the ids are as they were written, and return them.

        anew: look at a large file even if this machine knows it. ValueError if it is not.
        """
        assert self.facts is not None
        tokens = self.folder / file_names(self.name)[0]
        return open_tokens(tokens, self.facts, self.vocabulary.size, anew)

    def open_documents(self, anew: bool = False) -> np.ndarray:
        """See that index and names are as they were written, and return the index; as above."""
        assert self.facts is not None
        _, documents, names = file_names(self.name)
        check_names(self.folder / names, self.facts, anew)
        return open_documents(self.folder / documents, self.facts, anew)


class Shards:
    """An opened shards folder; see `open_shards`."""

    def __init__(self, path: Path, manifest: Manifest, vocabulary: Tokenizer) -> None:
        self.path, self.manifest, self.vocabulary = path, manifest, vocabulary
        self.corpus = manifest.corpus
        self.unit: str = manifest.unit
        self.hash = manifest.hash
        self._opened: dict[str, Split] = {}

    @property
    def splits(self) -> list[str]:
        """Names of the splits, in the order train, validation, test."""
        return [name for name in SPLITS if name in self.manifest.splits]

    def split(self, name: str) -> Split:
        """One split; ValueError names the known ones."""
        if name not in self.splits:
            raise ValueError(f"{self.path} has no split {name!r}: use {', '.join(self.splits)}")
        if name not in self._opened:
            facts = self.facts(name)
            self._opened[name] = Split(
                folder=self.path,
                name=name,
                bytes=facts.bytes,
                words=facts.words,
                unit=self.unit,
                denominator_words=facts.denominator_words,
                shards_hash=self.hash,
                vocabulary=self.vocabulary,
                facts=facts,
                lossless=self.manifest.lossless.get(name),
            )
        return self._opened[name]

    def facts(self, name: str) -> SplitFacts:
        """What the manifest says of a split that there is."""
        return self.manifest.splits[name]


def open_shards(path: Path | str, verify: bool = False) -> Shards:
    """Open a shards folder and see that its files are as they were written.

    Indexes and names are looked at here, tokens when they are first used; what is large, once on a
    machine. verify: look at every file, tokens too, whether or not this machine knows them.
    ValueError for a folder without shards, missing or altered files, or a vocabulary of another
    build.
    """
    path = Path(path)
    manifest = read_manifest(path)
    for name, facts in manifest.splits.items():
        if set(facts.files) != set(file_names(name)):
            raise ValueError(f"{path / MANIFEST} lists other files of {name}; {AGAIN}")
        for file, expected in facts.files.items():
            check_size(path / file, expected)
    vocabulary = load_tokenizer(path / "vocabulary")
    if vocabulary.hash != manifest.vocabulary.hash:
        raise ValueError(
            f"{path / 'vocabulary'} belongs to another build than {path / MANIFEST}; {AGAIN}"
        )
    shards = Shards(path, manifest, vocabulary)
    for name in shards.splits:
        shards.split(name).open_documents(verify)
        if verify:
            shards.split(name).open_tokens(verify)
    return shards
