"""Tokenizers: bytes, words, SentencePiece subwords, the Hugging Face hub's, mu-law audio."""

from collections.abc import Callable
from pathlib import Path

from pydantic import Field

from data.common.schema import Count, Record, Sha256, read_record
from data.tokenizers.fixed import ByteTokenizer, MuLawTokenizer
from data.tokenizers.hub_files import TOKENIZER
from data.tokenizers.huggingface import HuggingFaceTokenizer
from data.tokenizers.subwords import MODEL, SentencePieceTokenizer
from data.tokenizers.tokenizer import AGAIN, DESCRIPTION, Tokenizer, WordCounter
from data.tokenizers.words import WORDS, WordTokenizer

__all__ = [
    "ByteTokenizer",
    "HuggingFaceTokenizer",
    "MuLawTokenizer",
    "SentencePieceTokenizer",
    "Tokenizer",
    "WordCounter",
    "WordTokenizer",
    "description_of",
    "load_tokenizer",
]

KINDS: dict[str, tuple[str, Callable[[Path], Tokenizer]]] = {
    "bytes": (DESCRIPTION, lambda _: ByteTokenizer()),
    "mulaw": (DESCRIPTION, lambda _: MuLawTokenizer()),
    "words": (WORDS, WordTokenizer.load),
    "sentencepiece": (MODEL, SentencePieceTokenizer.load),
    "hf": (TOKENIZER, HuggingFaceTokenizer.load),
}
"""Of each kind the file that it needs, and what reads it from its folder."""


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
    size: Count | None = None
    """Of hf: rows of the model."""
    special: dict[str, Count] = Field(default_factory=dict)
    """Of hf: ids of special tokens, by what they say and as bos, eos, pad and unk."""
    ends: list[Count] = Field(default_factory=list)
    """Of hf: ids at which a model ends what it writes."""


def description_of(folder: Path) -> Description:
    """What a folder's vocabulary is; ValueError when it holds none, or one that has changed."""
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"{folder} holds no vocabulary: {DESCRIPTION} is missing")
    return read_record(Description, folder / DESCRIPTION, AGAIN)


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read what `save` wrote; ValueError when files are missing or do not match their hash."""
    description = description_of(folder)
    kind = description.kind
    if kind not in KINDS:
        raise ValueError(f"{folder} holds a vocabulary of unknown kind {kind!r}")
    if kind == "words" and (description.eos is None or description.unknown is None):
        raise ValueError(f"{folder / DESCRIPTION} lacks eos or unknown; {AGAIN}")
    if kind == "hf" and description.size is None:
        raise ValueError(f"{folder / DESCRIPTION} lacks size; {AGAIN}")
    needed, load = KINDS[kind]
    if not (folder / needed).is_file():
        raise ValueError(f"{folder / needed} is missing: prepare the shards again")
    try:
        vocabulary = load(folder)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{folder} is damaged: prepare the shards again ({error})") from error
    if vocabulary.hash != description.hash:
        raise ValueError(f"{folder} is damaged: the vocabulary does not match its hash")
    return vocabulary
