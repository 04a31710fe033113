"""From nats to the units that the field compares, and how sure a number is.

A unit divides the same sum of nats by what its benchmark divides by: raw bytes, characters, tokens,
or words whatever the tokens are (Compressive Transformer, section 4.2).
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.shards import Split
from data.tokenizers.registry import Vocabulary
from lm.scoring import BITS, Score

BLOCK_TOKENS = 1 << 22
RESAMPLES = 1000
LEVEL = 0.95
MOST_NATS = 700.0
"""Whose exponential is still a floating-point number."""


@dataclass(frozen=True)
class Sizes:
    """What a scored text amounts to."""

    tokens: int
    bytes: int | None
    """None, as are characters, where the tokens do not give the text back."""
    characters: int | None
    words: int

    def denominator(self, unit: str) -> int | None:
        """What the nats of a unit are divided by; None where a text has no such unit."""
        return {
            "bits_per_byte": self.bytes,
            "bits_per_character": self.characters,
            "bits_per_sample": self.tokens,
            "token_perplexity": self.tokens,
            "word_perplexity": self.words,
        }[unit]


def sizes(split: Split, score: Score) -> Sizes:
    """Sizes of a whole split: the published word count where this is the full official split, else
    the split's own.
    """
    words = split.denominator_words or split.words
    return Sizes(score.tokens, score.bytes, characters(split) if split.exact else None, words)


def characters(split: Split) -> int:
    """Unicode characters of a split, counted at the byte that each begins with."""
    begins = token_characters(split.vocabulary)
    blocks = range(0, len(split.tokens), BLOCK_TOKENS)
    return sum(int(begins[split.tokens[at : at + BLOCK_TOKENS]].sum()) for at in blocks)


def token_characters(vocabulary: Vocabulary) -> np.ndarray:
    """Characters that begin in each token; [V]."""
    return np.array(
        [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in vocabulary.pieces], dtype=np.int64
    )


def bits_of(cost: Mapping[str, Any]) -> float:
    """Bits per byte of a record or, where it has none, per token."""
    bits: float = cost[unit_of(cost)]
    return bits


def unit_of(cost: Mapping[str, Any]) -> str:
    """The name that `bits_of` finds the cost by."""
    return BITS[cost.get(BITS[0]) is None]


def bits_named(costs: Iterable[Mapping[str, Any]]) -> str:
    """The units of some records in words."""
    units = {unit_of(cost) for cost in costs}
    return " or ".join(unit.replace("_", " ") for unit in BITS if unit in units)


def convert(nats: float, unit: str, denominator: float) -> float:
    """A sum of nats in a unit; a perplexity beyond all floating-point numbers is infinite."""
    mean = nats / denominator
    if not unit.endswith("perplexity"):
        return mean / math.log(2)
    return math.exp(mean) if mean < MOST_NATS else math.inf


def all_units(score: Score, sizes: Sizes, kind: str) -> dict[str, float]:
    """A score in every unit that makes sense for a kind of vocabulary.

    Audio has samples, one a token; text has bytes, characters, tokens and words. What the score
    does not fit into is left out, as are bytes and characters that the tokens do not give back.
    """
    names = ["bits_per_byte", "bits_per_character", "token_perplexity", "word_perplexity"]
    names = ["bits_per_sample"] if kind == "mulaw" else names
    found = {
        name: convert(score.nats, name, denominator)
        for name in names
        if (denominator := sizes.denominator(name))
    }
    return {name: value for name, value in found.items() if math.isfinite(value)}


def interval(score: Score, split: Split, unit: str, denominator: int, seed: int = 0) -> list[float]:
    """Bootstrap confidence interval of a score: documents drawn again, with replacement.

    It says how far the number may be from that of other documents of the kind. Empty for fewer than
    two documents, which say nothing of others.

    Args:
        score: of the split.
        split: with the documents' sizes.
        unit: of the interval.
        denominator: of the whole split in this unit.
        seed: of the draws.
    """
    documents = split.documents
    name = {"word_perplexity": "words", "bits_per_byte": "bytes"}.get(unit, "tokens")
    used = documents["tokens"] > 0
    size, nats = documents[name][used].astype(float), score.document_nats[used]
    if len(size) < 2:
        return []
    random = np.random.default_rng(seed)
    means = []
    for _ in range(RESAMPLES):
        times = np.bincount(random.integers(len(size), size=len(size)), minlength=len(size))
        means.append(times @ nats / max(times @ size, 1))
    # Published counts differ a little from the documents' own.
    scale = size.sum() / denominator
    tails = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) * scale
    return [convert(float(mean), unit, 1.0) for mean in tails]


LONGEST = 80
"""Characters of a name in a figure or table, whose layout a longer one would break."""
MARKUP = re.compile(r"([\\`*_<>\[\]$|~#])")
"""What Markdown may read as more than itself."""


def plain(name: object) -> str:
    """A name on one line; what cannot be read, such as control characters and bytes that are not
    UTF-8, is written as escapes.
    """
    return "".join(map(_plain, str(name)))


def _plain(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    if "\udc80" <= character <= "\udcff":
        # How Python keeps a byte of a file's name that is not UTF-8.
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def short(name: object) -> str:
    """As `plain`, cut in the middle where it is very long."""
    text = plain(name)
    if len(text) <= LONGEST:
        return text
    half = (LONGEST - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def drawn(name: object) -> str:
    """A name for matplotlib, which reads what stands between dollar signs as TeX and leaves names
    that begin with an underscore out of legends.
    """
    text = short(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def marked(name: object) -> str:
    """A name for Markdown, which shows it as it is."""
    return MARKUP.sub(r"\\\1", plain(name))
