"""Accuracy of answers by the distance to what they need."""

import json as json_lib
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from data.shards import Split
from lm.inference.predictor import StateT
from lm.model.components import cross_entropy
from lm.model.model_config import ModelConfig
from lm.objectives.objective import Segment
from lm.scoring import Scorer


class RecallScorer(Scorer[StateT]):
    """A scorer that notes which tokens the predictor holds most probable."""

    known_N: np.ndarray

    def read(self, segment: Segment, state: StateT) -> tuple[Tensor, StateT]:
        """What a segment costs; notes where the predictor was right."""
        targets_BT = segment.targets_BT
        hidden, state = self.predictor.read(segment.inputs_BT, state)
        logits_BTV = self.predictor.logits(hidden)
        right_BT = (logits_BTV.argmax(dim=-1) == targets_BT).cpu().numpy()
        scored_BT = self.batch.scored_BT[self.rows]
        place_BT = self.batch.offset_B[self.rows, None] + np.arange(right_BT.shape[1])
        if self.step == 0:
            self.known_N = np.zeros(len(self.split.tokens), dtype=bool)
        self.known_N[place_BT[scored_BT]] = right_BT[scored_BT]
        nats = cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        return nats.view(targets_BT.shape), state


def read_answers(path: Path, split: Split) -> np.ndarray:
    """First token in the split, tokens, and distance in tokens of every answer, [answers, 3].

    Tokens of an answer are all that hold a byte of it, such as a town with the space before it.

    Raises:
        ValueError: the file is not that of the split, or its vocabulary loses some of the text.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not there; make it with python -m data.recall")
    if not split.exact:
        raise ValueError(
            f"answers cannot be found in {split.vocabulary.name}, which loses some of the text; "
            f"prepare {path.parent} with another vocabulary, such as bytes"
        )
    try:
        records = [json_lib.loads(line) for line in path.read_text().splitlines()]
        texts = [record["text"].encode() for record in records]
        answers = [record["answers"] for record in records]
    except (KeyError, TypeError, AttributeError, ValueError):
        texts = []
    require_text(path, texts, split)
    rows = []
    for ids, begin, asked in zip(
        documents_of(split), split.documents["offset"], answers, strict=True
    ):
        ends = split.vocabulary.token_bytes[ids].cumsum()
        for first, count, distance in asked:
            bytes_3 = [first, first + count - 1, first - distance]
            here, last, there = ends.searchsorted(bytes_3, side="right").tolist()
            rows.append((begin + here, last - here + 1, here - there))
    if not rows:
        raise ValueError(f"{path} has no answers; give a text of data.recall")
    return np.array(rows, dtype=np.int64)


def require_distances(path: Path, rows: np.ndarray) -> None:
    """ValueError where answers do not stand behind what they need, as of a text of data.series."""
    if rows[:, 2].min() < 1:
        raise ValueError(
            f"{path} has answers that stand behind nothing in their document: give a text of "
            "data.recall"
        )


def documents_of(split: Split) -> list[np.ndarray]:
    """The tokens of each document."""
    begins, sizes = split.documents["offset"], split.documents["tokens"]
    return [
        np.asarray(split.tokens[begin : begin + size])
        for begin, size in zip(begins, sizes, strict=True)
    ]


def require_text(path: Path, texts: list[bytes], split: Split) -> None:
    """ValueError where the documents of a file are not those of a split."""
    if texts != [split.vocabulary.decode(ids) for ids in documents_of(split)]:
        raise ValueError(
            f"{path} is not the text of the split {split.name!r}; give the file that was prepared"
        )


def buckets(known_N: np.ndarray, rows: np.ndarray) -> list[dict[str, Any]]:
    """Share of known tokens, and of answers known whole, by distance in powers of two."""
    power = np.log2(rows[:, 2]).astype(int)
    found = []
    for each in np.unique(power):
        inside = rows[power == each]
        right = [known_N[first : first + count] for first, count, _ in inside]
        known = np.concatenate(right)
        found.append(
            {
                "from": int(2**each),
                "to": int(2 ** (each + 1)),
                "answers": len(inside),
                "tokens": len(known),
                "accuracy": float(known.mean()),
                "whole": float(np.mean([answer.all() for answer in right])),
            }
        )
    return found


def reach(config: ModelConfig) -> dict[str, int]:
    """How far back a layer sees, in tokens: at most the segment, with memory, with both; and the
    whole model.
    """
    memory = config.segment + config.memory
    compressed = config.compressed * config.segment // config.windows if config.compressed else 0
    return {
        "segment": config.segment,
        "memory": memory,
        "compressed": memory + compressed,
        "model": config.range,
    }


def table(found: dict[str, Any]) -> str:
    """The accuracies in lines, with what each distance needs."""
    lines = [f"{'distance':>16}{'answers':>9}{'tokens right':>14}{'all right':>11}"]
    seen = [(name, found["reach"][name]) for name in ("segment", "memory", "compressed", "model")]
    for row in found["buckets"]:
        needed = next((name for name, far in seen if row["from"] < far), "out of range")
        lines.append(
            f"{row['from']:>7} to {row['to'] - 1:<5}{row['answers']:>9}{row['accuracy']:>14.1%}"
            f"{row['whole']:>11.1%}  {needed}"
        )
    return "\n".join(lines)
