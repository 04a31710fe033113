"""Program: made-up text whose answers stand at known distances behind what they are about.

Writes train.jsonl, validation.jsonl and test.jsonl for data.prepare (corpus text, vocabulary
bytes), a document a line: `text`, and `answers`, each [first byte, bytes, distance in bytes].

| task | a document |
|---|---|
| copy | a random string, digits, then the string again |
| needle | words with a code among them; the code is asked for at the end |
| associative | pairs of a letter and a value, digits, then every letter again with its value |
| cue | one of four letters at a random place among dots, which a question mark asks for |
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Literal, NamedTuple

from data.common import command
from data.common.schema import Count, Size
from data.common.values import require_ranges
from data.documents import SPLITS
from data.synthetic import publish

SENTENCE = "the river of a long road ran under its bridge and past our house into that wood"
WORDS = tuple(SENTENCE.split())
KEY = 8
"""Letters of a string or code."""
PAIRS = 8
"""Pairs of an associative document."""
CUES = "ABCD"
"""Letters that a cue may be."""
PLACES = 64
"""Dots before a cue, at most."""

TaskName = Literal["copy", "needle", "associative", "cue"]


class Answer(NamedTuple):
    """Bytes that are known to whoever remembers what stands so far back."""

    first: int
    bytes: int
    distance: int


@dataclass(frozen=True)
class RecallConfig:
    """What is asked, and how far back the answers are."""

    task: TaskName = "copy"
    """copy, needle, associative or cue."""
    distances: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    """Bytes between an answer and what it is about, at least; each document has one of them."""
    documents: Size = 4000
    """Of the training split."""
    held_out: Size = 200
    """Documents of each other split."""
    seed: Count = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        if not self.distances or min(self.distances) < 2 * KEY:
            raise ValueError(f"distances must be some of at least {2 * KEY} bytes")
        require_ranges(self)

    def count(self, split: str) -> int:
        """Documents of a split."""
        return self.documents if split == "train" else self.held_out

    def bytes(self, split: str) -> int:
        """Bytes of a split's text, at least."""
        rounds, rest = divmod(self.count(split), len(self.distances))
        return rounds * sum(self.distances) + sum(self.distances[:rest])


def main(recall: RecallConfig, out: Path) -> None:
    """Write text for a task of long-range recall.

    Args:
        recall: the task.
        out: folder for the text, which appears whole or not at all; one that is there must be
            empty or hold the same text.
    """
    longest = max(recall.distances)
    publish(
        out,
        lambda split, path: write_split(recall, split, path),
        size=sum(map(recall.bytes, SPLITS)),
        # While it is made, a document is a list of characters.
        memory=8 * longest,
        what=f"a document of {longest:,} bytes (--distances)",
    )


def write_split(recall: RecallConfig, split: str, path: Path) -> None:
    """Write the documents of a split."""
    draws = random.Random(f"{recall.seed} {recall.task} {split}")
    with path.open("w", encoding="utf-8") as file:
        for number in range(recall.count(split)):
            distance = recall.distances[number % len(recall.distances)]
            text, answers = TASKS[recall.task](draws, distance)
            file.write(json.dumps({"text": text, "answers": answers}) + "\n")


def letters(draws: random.Random, count: int) -> str:
    """Random letters."""
    return "".join(draws.choices(ascii_lowercase, k=count))


def copy(draws: random.Random, distance: int) -> tuple[str, list[Answer]]:
    """Every letter stands exactly `distance` bytes before its copy."""
    key = letters(draws, KEY)
    filler = "".join(draws.choices(digits, k=distance - KEY - 1))
    return f"{key}{filler}={key}\n", [Answer(distance, KEY, distance)]


def needle(draws: random.Random, distance: int) -> tuple[str, list[Answer]]:
    """One code among words."""
    code = letters(draws, KEY)
    text = words(draws, draws.randrange(60)) + f"the code is <{code}> "
    first = text.index(code)
    question = "the code is <"
    text += words(draws, distance - KEY - 2 - len(question))
    text += question
    answer = Answer(len(text), KEY, len(text) - first)
    return f"{text}{code}>\n", [answer]


def words(draws: random.Random, least: int) -> str:
    """Words of at least so many bytes, each with a space behind it."""
    text = ""
    while len(text) < least:
        text += draws.choice(WORDS) + " "
    return text


def associative(draws: random.Random, distance: int) -> tuple[str, list[Answer]]:
    """Different letters with values; asked for in another order."""
    keys = draws.sample(ascii_lowercase, PAIRS)
    pairs = {key: draws.choice(ascii_lowercase).upper() for key in keys}
    text = "".join(f"{key}{value} " for key, value in pairs.items())
    at = {key: 3 * number + 1 for number, key in enumerate(keys)}
    text += "".join(draws.choices(digits, k=distance - 5)) + "? "
    answers = []
    for key in draws.sample(keys, PAIRS):
        text += key
        answers.append(Answer(len(text), 1, len(text) - at[key]))
        text += pairs[key] + " "
    return text + "\n", answers


def cue(draws: random.Random, distance: int) -> tuple[str, list[Answer]]:
    """The cue stands exactly `distance` bytes before it is asked for, and nothing else is to be
    learnt but when.
    """
    letter, before = draws.choice(CUES), draws.randrange(PLACES + 1)
    text = "." * before + letter + "." * (distance - 2) + "?"
    return f"{text}{letter}\n", [Answer(len(text), 1, distance)]


Task = Callable[[random.Random, int], tuple[str, list[Answer]]]
TASKS: dict[TaskName, Task] = {
    "copy": copy,
    "needle": needle,
    "associative": associative,
    "cue": cue,
}


if __name__ == "__main__":
    command.run(main, section="recall")
