"""Program: made-up text whose answers stand at known distances behind what they are about.

Writes train.jsonl, validation.jsonl and test.jsonl for data.prepare (corpus text, any vocabulary
that gives back what it reads), a document a line: `text`, and `answers`, each [first byte, bytes,
distance in bytes].

| task | a document |
|---|---|
| copy | a random string, digits, then the string again |
| needle | words with a code among them; the code is asked for at the end |
| associative | pairs of a letter and a value, digits, then every letter again with its value |
| cue | one of four letters at a random place among dots, which a question mark asks for |
| names | a list of guests, words, then the list again |
| key_value | sentences of who lives where among words; one of them again, for its last word |
| chain | one lives in a town, one with him, one with her: the town of the last |

The last three are in words, so that models of subwords can be asked without being trained on them;
the last two are the kinds "multi-key needle" and "variable tracking" of RULER (Hsieh et al., arXiv
2404.06654, section 3).
"""

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
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
"""Pairs of an associative document, people of one of key_value, and guests of one of names."""
CUES = "ABCD"
"""Letters that a cue may be."""
PLACES = 64
"""Dots before a cue, at most."""
WHO = (
    "Adam Anna Carl Clara Daniel Diana Edward Ellen Frank Fiona George Grace "
    "Henry Helen Jacob Jane Martin Mary Oliver Olga Peter Paula Victor Vera"
)
PEOPLE = tuple(WHO.split())
WHERE = (
    "Athens Berlin Boston Cairo Dublin Geneva Havana Lisbon London Madrid Milan Moscow "
    "Naples Oslo Paris Prague Rome Seville Sydney Tokyo Turin Venice Vienna Warsaw"
)
TOWNS = tuple(WHERE.split())
LINKS = 2
"""People of a chain behind the one whose town is told."""

TaskName = Literal["copy", "needle", "associative", "cue", "names", "key_value", "chain"]
SHORTEST: dict[TaskName, int] = {"names": 96, "chain": 96}
"""The least distance in bytes where a task needs more than twice a key."""


class Answer(NamedTuple):
    """Bytes that are known to whoever remembers what stands so far back."""

    first: int
    bytes: int
    distance: int


@dataclass(frozen=True)
class RecallConfig:
    """What is asked, and how far back the answers are."""

    task: TaskName = "copy"
    """copy, needle, associative, cue, names, key_value or chain."""
    distances: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    """Bytes between an answer and what it is about, at least; each document has one of them."""
    documents: Size = 4000
    """Of the training split."""
    held_out: Size = 200
    """Documents of each other split."""
    seed: Count = 0
    """Of all that is drawn."""

    def __post_init__(self) -> None:
        least = SHORTEST.get(self.task, 2 * KEY)
        if not self.distances or min(self.distances) < least:
            raise ValueError(f"distances of {self.task} must be some of at least {least} bytes")
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


def names(draws: random.Random, distance: int) -> tuple[str, list[Answer]]:
    """Every guest stands as many bytes before the name's copy, the first of the list as well."""
    guests = draws.sample(PEOPLE, PAIRS)
    listed = f"the guests are {', '.join(guests)}. "
    text = words(draws, draws.randrange(60))
    told = len(text)
    text += listed + words(draws, distance - len(listed))
    back = len(text) - told
    answers = [Answer(len(text) + listed.index(f" {who}") + 1, len(who), back) for who in guests]
    return f"{text}{listed.rstrip()}\n", answers


def key_value(draws: random.Random, distance: int) -> tuple[str, list[Answer]]:
    """One of several sentences is asked for; others stand before it and, where there is room,
    behind it, so that the last town is rarely the right one.
    """
    (who, *people), (town, *towns) = draws.sample(PEOPLE, PAIRS), draws.sample(TOWNS, PAIRS)
    others = [lives(*pair) for pair in zip(people, towns, strict=True)]
    before, behind = apart(draws, others, distance - len(f"{town}. {who} lives in "))
    text = scattered(draws, before, len("".join(before)) + draws.randrange(60))
    return asked(draws, text, who, town, behind, who, distance)


def chain(draws: random.Random, distance: int) -> tuple[str, list[Answer]]:
    """The town stands `distance` bytes back, the links between; another chain stands beside it,
    begun before or, where there is room, behind.
    """
    people, (town, other) = draws.sample(PEOPLE, 2 * LINKS + 2), draws.sample(TOWNS, 2)
    mine, theirs = people[: LINKS + 1], people[LINKS + 1 :]
    room = distance - len(f"{town}. {''.join(linked(mine))}{mine[-1]} lives in ")
    begun = draws.choice((True, False)) or len(lives(theirs[0], other)) > room
    text = words(draws, draws.randrange(60)) + (lives(theirs[0], other) if begun else "")
    second = ([] if begun else [lives(theirs[0], other)]) + linked(theirs)
    while len("".join(second)) > room:
        second.pop()
    queues, turns = (linked(mine), second), [0] * LINKS + [1] * len(second)
    draws.shuffle(turns)
    between = [queues[turn].pop(0) for turn in turns]
    return asked(draws, text, mine[0], town, between, mine[-1], distance)


def lives(who: str, town: str) -> str:
    """A sentence that tells a town."""
    return f"{who} lives in {town}. "


def linked(people: list[str]) -> list[str]:
    """Sentences of each who lives with the one before."""
    return [f"{who} lives with {whom}. " for whom, who in pairwise(people)]


def apart(draws: random.Random, sentences: list[str], room: int) -> tuple[list[str], list[str]]:
    """Sentences for before and for behind, where at most `room` bytes fit."""
    before: list[str] = []
    behind: list[str] = []
    for sentence in sentences:
        fits = len("".join(behind) + sentence) <= room
        (behind if fits and draws.choice((True, False)) else before).append(sentence)
    return before, behind


def asked(
    draws: random.Random,
    text: str,
    who: str,
    town: str,
    between: list[str],
    whose: str,
    distance: int,
) -> tuple[str, list[Answer]]:
    """A document in which who lives where is told after `text`, and whose town asked for."""
    first = len(text) + len(f"{who} lives in ")
    question = f"{whose} lives in "
    text += lives(who, town)
    text += scattered(draws, between, distance - len(f"{town}. {question}")) + question
    return f"{text}{town}.\n", [Answer(len(text), len(town), len(text) - first)]


def scattered(draws: random.Random, sentences: list[str], least: int) -> str:
    """Sentences in their order at random places among words, at least so many bytes."""
    filler = words(draws, least - len("".join(sentences))).split()
    places = sorted(draws.randrange(len(filler) + 1) for _ in sentences)
    pieces = [f"{word} " for word in filler]
    for sentence, place in reversed(list(zip(sentences, places, strict=True))):
        pieces.insert(place, sentence)
    return "".join(pieces)


Task = Callable[[random.Random, int], tuple[str, list[Answer]]]
TASKS: dict[TaskName, Task] = {
    "copy": copy,
    "needle": needle,
    "associative": associative,
    "cue": cue,
    "names": names,
    "key_value": key_value,
    "chain": chain,
}


if __name__ == "__main__":
    command.run(main, section="recall")
