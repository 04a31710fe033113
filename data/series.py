"""Program: made-up text whose documents come again: a name, and late a code of one letter; again
the name, and early a question for the code.

Writes train.jsonl, validation.jsonl and test.jsonl for data.prepare (corpus text, any vocabulary
that gives back what it reads), a document a line: `text`, `answers`, each [first byte, bytes, bytes
back to where it was told], and `recurs`, the number of the document that it comes back to, or null.
Documents of the training split hold both, so that a model can learn to answer from its memory; in
the others they are two documents, and only who keeps the memory of the first, and finds it by how
the second begins, can answer (after Ritter et al. 2018, "Been there, done that", arXiv 1805.09692).
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase, ascii_uppercase
from typing import Any

from data.common import command
from data.common.schema import Count, Size
from data.common.values import require_ranges
from data.synthetic import publish

KEY = 8
"""Letters of a name."""
CODES = ascii_uppercase
"""A code is one of these."""
LOOSE = 16
"""Stretches of dots differ by less than this."""


@dataclass(frozen=True)
class SeriesConfig:
    """How long documents are, and how many stand between one and its recurrence."""

    gaps: tuple[Size, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Documents between a document and its recurrence, in the splits that are held out."""
    opening: Size = 40
    """Bytes of a document before a code is told or asked for, at least; a model is to recognise
    the document by them."""
    after: Size = 40
    """Bytes of a document behind the code, at least: a segment, so that all of the code enters
    memory."""
    documents: Size = 20_000
    """Of the training split."""
    held_out: Size = 65
    """Questions of each gap in each other split, at least."""
    seed: Count = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        require_ranges(self)
        if not self.gaps or len(set(self.gaps)) < len(self.gaps):
            raise ValueError(f"gaps must be some different numbers, not {list(self.gaps)}")
        if self.opening <= KEY:
            raise ValueError(f"an opening has more than the {KEY} letters of a name")

    @property
    def length(self) -> int:
        """Bytes of a document and its recurrence, at most."""
        return 2 * (self.opening + LOOSE) + self.after + LOOSE + 6


def main(series: SeriesConfig, out: Path) -> None:
    """Write text whose documents come again.

    Args:
        series: lengths, and how much of it.
        out: folder for the text, which appears whole or not at all; one that is there must be
            empty or hold the same text.
    """
    held_out = sum(-(-series.held_out // (gap + 1)) * (gap + 1) for gap in series.gaps)
    publish(
        out,
        lambda split, path: write_split(series, split, path),
        size=(series.documents + 2 * held_out) * (series.length // 2),
        memory=8 * series.length * (max(series.gaps) + 1),
        what=f"a block of {max(series.gaps) + 1:,} documents (--gaps, --opening, --after)",
    )


def write_split(series: SeriesConfig, split: str, path: Path) -> None:
    """Write the documents of a split."""
    draws = random.Random(f"{series.seed} series {split}")
    with path.open("w", encoding="utf-8") as file:
        made = trained(series, draws) if split == "train" else held_out(series, draws)
        file.writelines(json.dumps(document) + "\n" for document in made)


def trained(series: SeriesConfig, draws: random.Random) -> Iterator[dict[str, Any]]:
    """Documents that hold a telling and a question for it, some of them with fewer dots than those
    of the other splits: near codes teach to look for far ones.
    """
    for _ in range(series.documents):
        name, code, share = letters(draws), draws.choice(CODES), draws.random()
        first, told = telling(series, draws, name, code, share)
        second, asked = question(series, draws, name, code, share)
        place = len(first) + asked
        answers = [[place, 1, place - told]]
        yield {"text": first + second, "answers": answers, "recurs": None}


def held_out(series: SeriesConfig, draws: random.Random) -> Iterator[dict[str, Any]]:
    """Of each gap g blocks of g + 1 documents and then their recurrences in the same order, so that
    just g documents stand between each and its own.
    """
    number = 0
    for gap in series.gaps:
        for _ in range(-(-series.held_out // (gap + 1))):
            pairs = [(letters(draws), draws.choice(CODES)) for _ in range(gap + 1)]
            for name, code in pairs:
                text, _ = telling(series, draws, name, code)
                yield {"text": text, "answers": [], "recurs": None}
            for name, code in pairs:
                text, asked = question(series, draws, name, code)
                # It was told in another document, so far back as no byte of this one.
                yield {"text": text, "answers": [[asked, 1, 0]], "recurs": number}
                number += 1
            number += gap + 1


def telling(
    series: SeriesConfig, draws: random.Random, name: str, code: str, share: float = 1.0
) -> tuple[str, int]:
    """A document that tells a code, with this share of the dots, and where it tells it."""
    before = name + dots(draws, series.opening - KEY, share) + "="
    return f"{before}{code}{dots(draws, series.after, share)}\n", len(before)


def question(
    series: SeriesConfig, draws: random.Random, name: str, code: str, share: float = 1.0
) -> tuple[str, int]:
    """A document that asks for a code, with this share of the dots, and where the answer begins."""
    before = name + dots(draws, series.opening - KEY, share) + "?"
    return f"{before}{code}\n", len(before)


def letters(draws: random.Random) -> str:
    """A name."""
    return "".join(draws.choices(ascii_lowercase, k=KEY))


def dots(draws: random.Random, least: int, share: float) -> str:
    """At least so many of them, or a share of so many."""
    return "." * round(share * (least + draws.randrange(LOOSE)))


if __name__ == "__main__":
    command.run(main, section="series")
