"""Cuts of a split by which a score is summed, the same whatever the tokens are: by the place in the
document, in bytes, and by how often training has seen the word.

Shapes: N tokens of the split, W words of a document, b buckets of frequency.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.shards import Shards, Split
from eval.parts import perplexity
from eval.per_word import (
    Seen,
    bucket_names,
    counts_line_ends,
    document_places,
    document_words,
    training_counts,
)

FIRST = 1024
"""Bytes from a document's beginning to the first edge; each further edge is twice as far."""
EDGES = (10_000, 1_000, 100)
"""Occurrences in the training text at which a bucket of rarer words begins."""
PLACES, FREQUENCY = "places", "frequency"


@dataclass(frozen=True)
class Cuts:
    """How a split is cut."""

    split: Split
    parts: dict[str, np.ndarray]
    """By name the part of each token, integers [N]."""
    words_b: np.ndarray
    """Words in each bucket of frequency; none where it is not cut so."""

    def rows(self, tallies: Mapping[str, np.ndarray]) -> dict[str, list[dict[str, Any]]]:
        """What a record says of the cuts (eval/results.py).

        Args:
            tallies: by name the nats of each part.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        if PLACES in self.parts:
            found[PLACES] = self._places(tallies[PLACES])
        if FREQUENCY in self.parts:
            names = bucket_names(EDGES)
            # The last part is of tokens without a word; the last buckets may have no token.
            nats = np.pad(tallies[FREQUENCY], (0, len(names)))[: len(names)]
            found[FREQUENCY] = [
                {"name": name, "words": words, "nats": cost, "perplexity": perplexity(cost, words)}
                for name, words, cost in zip(
                    names, self.words_b.tolist(), nats.tolist(), strict=True
                )
                if words
            ]
        return found

    def _places(self, nats: np.ndarray) -> list[dict[str, Any]]:
        size_N = self.split.vocabulary.token_bytes[self.split.tokens]
        edges = [0, *(FIRST << part for part in range(len(nats)))]
        return [
            {
                "from": edges[part],
                "to": edges[part + 1],
                "nats": float(nats[part]),
                "bytes": int(size),
                "documents": int((self.split.documents["bytes"] > edges[part]).sum()),
            }
            for part, size in enumerate(np.bincount(self.parts[PLACES], size_N))
            if size
        ]


def cuts_of(split: Split, shards: Shards, frequency: bool) -> Cuts:
    """How a score of a split is cut.

    Args:
        split: what is scored; only where its tokens give the text back is it cut.
        shards: the same text as it was prepared, with its training split.
        frequency: whether to cut by the frequency of words, for which all of training is read.

    Raises:
        ValueError: frequencies are asked for, and there is no training text that they can be of.
    """
    parts = {PLACES: places(split)} if split.exact else {}
    words_b = np.zeros(0, dtype=np.int64)
    if frequency:
        if not split.exact or "train" not in shards.splits:
            raise ValueError(
                "--frequency needs a training split beside what is scored, and tokens that give "
                "the text back; leave it out, or prepare the text with both"
            )
        training = training_counts(shards.split("train"), counts_line_ends(shards))
        parts[FREQUENCY], words_b = frequencies(split, training)
    return Cuts(split, parts, words_b)


def places(split: Split) -> np.ndarray:
    """By how many bytes from its document's beginning each token begins: part 0 is below FIRST."""
    found = np.zeros(len(split.tokens), dtype=np.uint8)
    for place in document_places(split):
        size = split.vocabulary.token_bytes[split.tokens[place]]
        # The exponent of 1 is 1, that of 2 and 3 is 2, and so on.
        found[place] = np.frexp((size.cumsum() - size) // FIRST)[1]
    return found


def frequencies(split: Split, training: Seen) -> tuple[np.ndarray, np.ndarray]:
    """Bucket of the word that each token belongs to, and the words in each bucket; tokens without
    a word are in a part of their own, the last.
    """
    rising = np.array(EDGES[::-1])
    none = len(EDGES) + 1
    found = np.full(len(split.tokens), none, dtype=np.uint8)
    words_b = np.zeros(none, dtype=np.int64)
    for place, words, word_n in document_words(split, training.line_ends):
        seen_W = np.array([training.counts[word] for word in words], dtype=np.int64)
        if not len(seen_W):
            continue
        bucket_W = len(EDGES) - rising.searchsorted(seen_W, side="right")
        words_b += np.bincount(bucket_W, minlength=none)
        found[place] = bucket_W[word_n]
    return found, words_b
