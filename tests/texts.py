"""Splits in memory, from texts."""

from collections import Counter
from pathlib import Path

import numpy as np

from data.shards import DOCUMENT_DTYPE, Split
from data.tokenizers.registry import (
    ByteTokenizer,
    MuLawTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WordTokenizer,
)
from data.tokenizers.words import split_words

TEXT = b" the long memory of a book \n a word and a letter \xc3\xa9 \n" * 40


def split_of(vocabulary: Tokenizer, texts: list[bytes], unit: str = "bits_per_byte") -> Split:
    """A split that holds these documents."""
    documents = np.zeros(len(texts), dtype=DOCUMENT_DTYPE)
    ids = [vocabulary.encode(text) for text in texts]
    documents["tokens"] = [len(each) for each in ids]
    documents["bytes"] = [len(text) for text in texts]
    documents["words"] = [len(text.split()) for text in texts]
    documents["offset"] = np.cumsum(documents["tokens"]) - documents["tokens"]
    total, words = int(documents["bytes"].sum()), int(documents["words"].sum())
    split = Split(Path(), "test", total, words, unit, None, "hash", vocabulary)
    split.__dict__["tokens"] = np.concatenate(ids)
    split.__dict__["documents"] = documents
    split.__dict__["details"] = [{"name": f"{i:02}"} for i in range(len(texts))]
    return split


def vocabularies() -> dict[str, Tokenizer]:
    """One of every kind, made from TEXT."""
    lines = iter(TEXT.decode().splitlines(keepends=True))
    return {
        "bytes": ByteTokenizer(),
        "words": WordTokenizer.build(Counter(split_words(TEXT))),
        "sentencepiece": SentencePieceTokenizer.train(lines, 280, "unigram"),
        "mulaw": MuLawTokenizer(),
    }
