"""Program: made-up text whose answers stand at known distances behind what they are about.

Writes train.jsonl, validation.jsonl and test.jsonl for data.prepare (corpus text, vocabulary
bytes), a document a line: `text`, and `answers`, each [first byte, bytes, distance in bytes].

| task | a document |
|---|---|
| copy | a random string, digits, then the string again |
| needle | words with a code among them; the code is asked for at the end |
| associative | pairs of a letter and a value, digits, then every letter again with its value |
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Literal, NamedTuple

from data.common import command
from data.common.files import atomic_path

SENTENCE = "the river of a long road ran under its bridge and past our house into that wood"
WORDS = tuple(SENTENCE.split())
KEY = 8
"""Letters of a string or code."""
PAIRS = 8
"""Pairs of an associative document."""

TaskName = Literal["copy", "needle", "associative"]


class Answer(NamedTuple):
    """Bytes that are known to whoever remembers what stands so far back."""

    first: int
    bytes: int
    distance: int


@dataclass(frozen=True)
class RecallConfig:
    """What is asked, and how far back the answers are."""

    task: TaskName = "copy"
    """copy, needle or associative."""
    distances: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    """Bytes between an answer and what it is about, at least; each document has one of them."""
    documents: int = 4000
    """Of the training split."""
    held_out: int = 200
    """Documents of each other split."""
    seed: int = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        if not self.distances or min(self.distances) < 2 * KEY:
            raise ValueError(f"distances must be some of at least {2 * KEY} bytes")
        if self.documents < 1 or self.held_out < 1:
            raise ValueError("documents and held_out must be at least 1")


def main(recall: RecallConfig, out: Path) -> None:
    """Write text for a task of long-range recall.

    Args:
        recall: the task.
        out: folder for the text.
    """
    out.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        draws = random.Random(f"{recall.seed} {recall.task} {split}")
        count = recall.documents if split == "train" else recall.held_out
        with atomic_path(out / f"{split}.jsonl") as temporary, temporary.open("w") as file:
            for number in range(count):
                distance = recall.distances[number % len(recall.distances)]
                text, answers = TASKS[recall.task](draws, distance)
                file.write(json.dumps({"text": text, "answers": answers}) + "\n")
    print(f"python -m data.prepare --corpus text --vocabulary bytes --source {out} --shards SHARDS")


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


Task = Callable[[random.Random, int], tuple[str, list[Answer]]]
TASKS: dict[TaskName, Task] = {"copy": copy, "needle": needle, "associative": associative}


if __name__ == "__main__":
    command.run(main, section="recall")
