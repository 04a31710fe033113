"""Token shards: memory-mapped ids, a document index and a manifest with hashes.

A shards folder holds, for each split, `<split>.tokens.npy` (ids, 1-D, uint8, uint16 or uint32),
`<split>.documents.npy` (one record a document, DOCUMENT_DTYPE) and `<split>.names.jsonl` (one line
a document: its name and what else is known of it), beside `vocabulary/` and `manifest.json`.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.common.files import hash_file, hash_json, read_json
from data.vocab import Vocabulary, load_vocabulary

MANIFEST = "manifest.json"
FORMAT = 1
DOCUMENT_DTYPE = np.dtype(
    [("offset", "<i8"), ("tokens", "<i8"), ("bytes", "<i8"), ("words", "<i8")]
)


def split_files(split: str) -> tuple[str, str, str]:
    """Names of a split's files: tokens, documents, names."""
    return f"{split}.tokens.npy", f"{split}.documents.npy", f"{split}.names.jsonl"


def content_hash(manifest: dict[str, Any]) -> str:
    """Hash of what the shards say: corpus, unit, vocabulary and every split's files and counts."""
    keys = ("format", "corpus", "unit", "vocabulary", "splits")
    return hash_json({key: manifest[key] for key in keys})


@dataclass(frozen=True)
class Split:
    """One split of a corpus.

    bytes, words: of the source text; unit: what the benchmark reports; denominator_words: the
    published word count when this is the full official split, else None.
    """

    folder: Path
    name: str
    bytes: int
    words: int
    unit: str
    denominator_words: int | None
    shards_hash: str
    vocabulary: Vocabulary

    @cached_property
    def tokens(self) -> np.ndarray:
        """Ids of the whole split, 1-D, memory-mapped and read-only."""
        return np.load(self.folder / split_files(self.name)[0], mmap_mode="r")

    @cached_property
    def documents(self) -> np.ndarray:
        """One record a document, in order: offset and number of tokens, bytes and words."""
        return np.load(self.folder / split_files(self.name)[1], mmap_mode="r")

    @cached_property
    def details(self) -> list[dict[str, Any]]:
        """For each document its name and, where known, title, year and the like."""
        text = (self.folder / split_files(self.name)[2]).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]

    @cached_property
    def names(self) -> list[str]:
        """The documents' names."""
        return [details["name"] for details in self.details]


class Shards:
    """An opened shards folder; see `open_shards`."""

    def __init__(self, path: Path, manifest: dict[str, Any], vocabulary: Vocabulary) -> None:
        self.path, self.manifest, self.vocabulary = path, manifest, vocabulary
        self.corpus: str = manifest["corpus"]
        self.unit: str = manifest["unit"]
        self.hash: str = manifest["hash"]

    @property
    def splits(self) -> list[str]:
        """Names of the splits, in the order train, validation, test."""
        order = ("train", "validation", "test")
        return [name for name in order if name in self.manifest["splits"]]

    def split(self, name: str) -> Split:
        """One split; ValueError names the known ones."""
        if name not in self.manifest["splits"]:
            raise ValueError(f"{self.path} has no split {name!r}: use {', '.join(self.splits)}")
        facts = self.manifest["splits"][name]
        return Split(
            folder=self.path,
            name=name,
            bytes=facts["bytes"],
            words=facts["words"],
            unit=self.unit,
            denominator_words=facts["denominator_words"],
            shards_hash=self.hash,
            vocabulary=self.vocabulary,
        )


def open_shards(path: Path | str, verify: bool = False) -> Shards:
    """Open a shards folder, checking that every file is there with its size.

    verify: also hash every file, at reading speed. ValueError for a folder without shards, missing,
    truncated or altered files, or a vocabulary of another build.
    """
    path = Path(path)
    if not (path / MANIFEST).is_file():
        raise ValueError(f"{path} holds no shards; make them with python -m data.prepare")
    manifest = read_json(path / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise ValueError(f"{path} has shards of another format; prepare them again")
    if content_hash(manifest) != manifest["hash"]:
        raise ValueError(f"{path / MANIFEST} does not match its hash; prepare the shards again")
    for facts in manifest["splits"].values():
        for name, file in facts["files"].items():
            check_file(path / name, file, verify)
    vocabulary = load_vocabulary(path / "vocabulary")
    if vocabulary.hash != manifest["vocabulary"]["hash"]:
        raise ValueError(
            f"{path / 'vocabulary'} belongs to another build than {path / MANIFEST}; "
            "prepare the shards again"
        )
    return Shards(path, manifest, vocabulary)


def check_file(path: Path, expected: dict[str, Any], verify: bool) -> None:
    """ValueError unless the file has the expected size (and, with `verify`, SHA-256)."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; prepare the shards again")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise ValueError(
            f"{path} has {size:,} bytes instead of {expected['bytes']:,}; prepare the shards again"
        )
    if verify and hash_file(path) != expected["sha256"]:
        raise ValueError(f"{path} does not match its hash; prepare the shards again")
