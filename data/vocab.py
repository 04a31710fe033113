"""Vocabularies: bytes, words, SentencePiece subwords and mu-law audio. Entry point."""

from pathlib import Path

from data.common.files import read_json
from data.vocabularies.base import DESCRIPTION, Vocabulary, WordCounter
from data.vocabularies.fixed import ByteVocabulary, MuLawVocabulary
from data.vocabularies.subwords import MODEL, SubwordVocabulary
from data.vocabularies.words import WORDS, WordVocabulary

__all__ = [
    "ByteVocabulary",
    "MuLawVocabulary",
    "SubwordVocabulary",
    "Vocabulary",
    "WordCounter",
    "WordVocabulary",
    "load_vocabulary",
]

FILES = {"bytes": None, "mulaw": None, "words": WORDS, "sentencepiece": MODEL}


def load_vocabulary(folder: Path) -> Vocabulary:
    """Read what `save` wrote; ValueError when files are missing or do not match their hash."""
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"{folder} holds no vocabulary: {DESCRIPTION} is missing")
    description = read_json(folder / DESCRIPTION)
    kind = description["kind"]
    if kind not in FILES:
        raise ValueError(f"{folder} holds a vocabulary of unknown kind {kind!r}")
    needed = FILES[kind]
    if needed and not (folder / needed).is_file():
        raise ValueError(f"{folder / needed} is missing: prepare the shards again")
    try:
        vocabulary = read_vocabulary(kind, folder)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{folder} is damaged: prepare the shards again ({error})") from error
    if vocabulary.hash != description["hash"]:
        raise ValueError(f"{folder} is damaged: the vocabulary does not match its hash")
    return vocabulary


def read_vocabulary(kind: str, folder: Path) -> Vocabulary:
    """The vocabulary of a known kind from its files."""
    match kind:
        case "words":
            return WordVocabulary.load(folder)
        case "sentencepiece":
            return SubwordVocabulary.load(folder)
        case "mulaw":
            return MuLawVocabulary()
        case _:
            return ByteVocabulary()
