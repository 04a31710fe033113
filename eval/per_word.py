"""What each word of a text costs, whatever the tokens, and how often training has seen it.

A word is what the benchmark counts: what stands between white space and, in WikiText, the end of
each line. Shapes: n tokens and m bytes of one document, W words in it.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from data.shards import Shards, Split
from data.tokenizers.tokenizer import IS_SPACE
from data.tokenizers.words import LINE_END

BLOCK_TOKENS = 1 << 20
NEWLINE = 10


def counts_line_ends(shards: Shards) -> bool:
    """Whether the benchmark counts the end of a line as a word."""
    return shards.corpus.startswith("wikitext")


def split_words(text: bytes, line_ends: bool) -> list[bytes]:
    """The words of a text, in order."""
    return (text.replace(b"\n", b" %s " % LINE_END) if line_ends else text).split()


class Seen(NamedTuple):
    """The words of a training text."""

    counts: Counter[bytes]
    """How often each occurs."""
    line_ends: bool
    """Whether a newline is a word of its own."""


def training_counts(split: Split, line_ends: bool) -> Seen:
    """How often each word occurs in a split, read block by block; none spans two documents."""
    counts: Counter[bytes] = Counter()
    for place in document_places(split):
        rest = b""
        for at in range(place.start, place.stop, BLOCK_TOKENS):
            ids = split.tokens[at : min(at + BLOCK_TOKENS, place.stop)]
            text = rest + split.vocabulary.decode(ids)
            # A word may go on in the next block.
            cut = max(text.rfind(space) for space in (b" ", b"\n", b"\t")) + 1
            counts.update(split_words(text[:cut], line_ends))
            rest = text[cut:]
        counts.update(split_words(rest, line_ends))
    return Seen(counts, line_ends)


def document_places(split: Split) -> Iterator[slice]:
    """Where each document stands among the split's tokens."""
    for begin, count in zip(split.documents["offset"], split.documents["tokens"], strict=True):
        yield slice(int(begin), int(begin + count))


class DocumentWords(NamedTuple):
    """The words of a document."""

    place: slice
    """Of its tokens in the split."""
    words: list[bytes]
    word_n: np.ndarray
    """Index of the word that each token belongs to; -1 where there is none."""


def document_words(split: Split, line_ends: bool) -> Iterator[DocumentWords]:
    """The words of each document of a split."""
    for place in document_places(split):
        ids = split.tokens[place]
        text = split.vocabulary.decode(ids)
        size_n = split.vocabulary.token_bytes[ids]
        text_m = np.frombuffer(text, dtype=np.uint8)
        word_n = word_of_each_token(text_m, size_n, line_ends)
        yield DocumentWords(place, split_words(text, line_ends), word_n)


def word_of_each_token(text_m: np.ndarray, size_n: np.ndarray, line_ends: bool) -> np.ndarray:
    """Index of the word that each token belongs to, [n]; -1 where there is none.

    A token belongs to the word of its last byte that is no white space; a token of white space to
    the word that follows, or the last one.

    Args:
        text_m: the bytes of a document.
        size_n: bytes of each token.
        line_ends: whether a newline is a word of its own.
    """
    newline_m = (text_m == NEWLINE) & line_ends
    visible_m = ~IS_SPACE[text_m] | newline_m
    apart_m = np.ones(len(text_m), dtype=bool)
    apart_m[1:] = ~visible_m[:-1] | newline_m[:-1]
    begun_m = (visible_m & (apart_m | newline_m)).cumsum()
    words = int(begun_m[-1]) if len(text_m) else 0
    if not words:
        return np.full(len(size_n), -1)
    end_n = size_n.cumsum()
    before_n = np.concatenate([[0], begun_m])[end_n]
    last_m = np.maximum.accumulate(np.where(visible_m, np.arange(len(text_m)), -1))
    last_n = np.concatenate([[-1], last_m])[end_n]
    own_n = last_n >= end_n - size_n
    return np.where(own_n, before_n - 1, np.minimum(before_n, words - 1))


def word_costs(
    split: Split, token_nats: np.ndarray, line_ends: bool
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """For each document its words and the nats [W] that each of them costs.

    Args:
        split: the split that was scored.
        token_nats: nats of each of its tokens.
        line_ends: whether a newline is a word of its own.
    """
    for place, words, word_n in document_words(split, line_ends):
        nats = token_nats[place].astype(np.float64)
        yield words, np.bincount(word_n[word_n >= 0], nats[word_n >= 0], minlength=len(words))


def by_frequency(
    split: Split, token_nats: np.ndarray, training: Seen, edges: tuple[int, ...]
) -> list[tuple[str, int, float]]:
    """Words by how often training has seen them, the most frequent first (paper, table 7): for each
    bucket its name, the number of words and their nats.

    Args:
        split: the split that was scored.
        token_nats: nats of each of its tokens.
        training: words of the training text.
        edges: frequencies at which a bucket of rarer words begins, falling.
    """
    words_b, nats_b = np.zeros(len(edges) + 1), np.zeros(len(edges) + 1)
    rising = np.array(edges[::-1])
    for words, nats in word_costs(split, token_nats, training.line_ends):
        seen = np.array([training.counts[word] for word in words], dtype=np.int64)
        bucket = len(edges) - rising.searchsorted(seen, side="right")
        words_b += np.bincount(bucket, minlength=len(words_b))
        nats_b += np.bincount(bucket, nats, minlength=len(nats_b))
    return [
        (name, int(number), float(cost))
        for name, number, cost in zip(bucket_names(edges), words_b, nats_b, strict=True)
    ]


def bucket_names(edges: tuple[int, ...]) -> list[str]:
    """Such as "from 10,000", "1,000 to 10,000", "below 1,000"."""
    inner = [f"{low:,} to {high:,}" for high, low in pairwise(edges)]
    return [f"from {edges[0]:,}", *inner, f"below {edges[-1]:,}"]
