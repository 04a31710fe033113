"""Tokenizers: bytes, words, SentencePiece subwords and mu-law audio. Entry point."""

from pathlib import Path

from pydantic import Field

from data.common.schema import Count, Record, Sha256, read_record
from data.tokenizers.fixed import ByteTokenizer, MuLawTokenizer
from data.tokenizers.subwords import MODEL, SentencePieceTokenizer
from data.tokenizers.tokenizer import AGAIN, DESCRIPTION, Tokenizer, WordCounter
from data.tokenizers.words import WORDS, WordTokenizer

__all__ = [
    "ByteTokenizer",
    "MuLawTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "WordCounter",
    "WordTokenizer",
    "description_of",
    "load_tokenizer",
]

FILES = {"bytes": None, "mulaw": None, "words": WORDS, "sentencepiece": MODEL}


class Description(Record):
    """vocabulary.json."""

    kind: str
    hash: Sha256
    """Of all that decides which ids a text becomes."""
    files: dict[str, Sha256] = Field(default_factory=dict)
    eos: Count | None = None
    """Of words: the id of the end of a line."""
    unknown: Count | None = None
    """Of words: the id of a word that is not among them."""


def description_of(folder: Path) -> Description:
    """What a folder's vocabulary is; ValueError when it holds none, or one that has changed."""
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"{folder} holds no vocabulary: {DESCRIPTION} is missing")
    return read_record(Description, folder / DESCRIPTION, AGAIN)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read what `save` wrote; ValueError when files are missing or do not match their hash."""
    description = description_of(folder)
    kind = description.kind
    if kind not in FILES:
        raise ValueError(f"{folder} holds a vocabulary of unknown kind {kind!r}")
    if kind == "words" and (description.eos is None or description.unknown is None):
        raise ValueError(f"{folder / DESCRIPTION} lacks eos or unknown; {AGAIN}")
    needed = FILES[kind]
    if needed and not (folder / needed).is_file():
        raise ValueError(f"{folder / needed} is missing: prepare the shards again")
    try:
        vocabulary = read_tokenizer(kind, folder)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{folder} is damaged: prepare the shards again ({error})") from error
    if vocabulary.hash != description.hash:
        raise ValueError(f"{folder} is damaged: the vocabulary does not match its hash")
    return vocabulary


def read_tokenizer(kind: str, folder: Path) -> Tokenizer:
    """The tokenizer of a known kind from its files."""
    match kind:
        case "words":
            return WordTokenizer.load(folder)
        case "sentencepiece":
            return SentencePieceTokenizer.load(folder)
        case "mulaw":
            return MuLawTokenizer()
        case _:
            return ByteTokenizer()
