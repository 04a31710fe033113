"""What is answered after the memory of an earlier document, by how long ago that was.

Shapes: D documents read so far, C width of a key, A arms, T tokens of an answer.
"""

import json as json_lib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.common.progress import Progress
from data.shards import Split
from eval.reach import documents_of
from lm.inference.episodes import CANDIDATES, inputs_of, key_of, taken, tell
from lm.inference.predictor import ModelPredictor, ModelState
from lm.model.memory import MemoryState
from lm.model.model_config import ModelConfig

ARMS = ("none", "found", "same", "other")
"""Memories that a document begins with: none; the one found by its opening; of the document that it
comes back to; of another."""


def read_recurrences(path: Path) -> dict[int, int]:
    """Numbers of the documents that come back, and of those they come back to.

    Raises:
        ValueError: no document of the file does.
    """
    records = [json_lib.loads(line) for line in path.read_text().splitlines()]
    told = {number: record.get("recurs") for number, record in enumerate(records)}
    recurs = {number: first for number, first in told.items() if isinstance(first, int)}
    if not recurs or any(not 0 <= first < number - 1 for number, first in recurs.items()):
        raise ValueError(
            f"no document of {path} comes again; give the file of a split that is held out, made "
            "with python -m data.series"
        )
    return recurs


def require_memories(config: ModelConfig) -> None:
    """ValueError where a model keeps nothing of a document for another."""
    if not (config.slots or config.filters):
        raise ValueError(
            "without memory, compressed memory and filters nothing is left of a document; give "
            "--memory or --compressed"
        )


@torch.no_grad()
def recur(
    predictor: ModelPredictor,
    split: Split,
    rows: np.ndarray,
    recurs: dict[int, int],
    opening: int,
) -> list[dict[str, Any]]:
    """What is answered after each memory, by the number of documents since the first one.

    Args:
        predictor: the model.
        split: the text.
        rows: first token in the split and tokens of every answer, [answers, 3] (eval.reach).
        recurs: the document that each comes back to.
        opening: tokens that a document is found by.

    Returns:
        For each gap: `gap`, `questions`, `nearest` and `found`, the shares of documents whose own
        earlier one had the nearest key and was taken after trying, and `right`, by arm the share of
        the answers' tokens that were held most probable.

    Raises:
        ValueError: an answer stands within an opening, or a document has not a whole segment.
    """
    keys_DC: list[torch.Tensor] = []
    memories: list[MemoryState] = []
    counted: dict[int, list[tuple[bool, bool, np.ndarray]]] = {}
    begins = split.documents["offset"]
    asked = {int(begins.searchsorted(row[0], side="right")) - 1: row for row in rows}
    documents, nothing = documents_of(split), predictor.begin(1).memory
    with Progress("read documents", len(documents), "document") as bar:
        for number, ids in enumerate(documents):
            key_C = key_of(predictor, ids, opening)
            if number in recurs:
                first, count = int(asked[number][0] - begins[number]), int(asked[number][1])
                require_behind(number, first, opening)
                distance_D = (torch.stack(keys_DC) - key_C).square().sum(dim=1)
                same, near = recurs[number], distance_D.argsort()[:CANDIDATES].tolist()
                tried = [*(memories[which] for which in near), nothing]
                place = taken(tell(predictor, ids[:opening], tried))
                found = near[0] == same, [*near, None][place] == same
                arms = [nothing, tried[place], memories[same], memories[number - 1]]
                memory = MemoryState.concatenate(arms)
                right_AT = answered(predictor, ids, memory, slice(first, first + count))
                counted.setdefault(number - same - 1, []).append((*found, right_AT))
            keys_DC.append(key_C)
            memories.append(memory_of(predictor, ids, number))
            bar.update()
    return [
        {
            "gap": gap,
            "questions": len(each),
            "nearest": float(np.mean([nearest for nearest, _, _ in each])),
            "found": float(np.mean([found for _, found, _ in each])),
            "right": {
                arm: float(np.mean([right_AT[row].mean() for *_, right_AT in each]))
                for row, arm in enumerate(ARMS)
            },
        }
        for gap, each in sorted(counted.items())
    ]


def require_behind(number: int, first: int, opening: int) -> None:
    """ValueError where an answer is a part of what a document is found by."""
    if first < opening:
        raise ValueError(
            f"document {number} asks within its opening of {opening:,} tokens; give a shorter "
            "--opening, or a text with a longer one"
        )


def answered(
    predictor: ModelPredictor, ids: np.ndarray, memory: MemoryState, answer: slice
) -> np.ndarray:
    """Whether each token of an answer is held most probable after each memory, [A, tokens]."""
    inputs_1T = inputs_of(predictor, ids)[:, : answer.stop]
    hidden, _ = predictor.read(inputs_1T.repeat(len(ARMS), 1), ModelState(memory))
    guesses_AT = predictor.logits(hidden[:, answer]).argmax(dim=-1).cpu().numpy()
    right_AT: np.ndarray = guesses_AT == ids[None, answer]
    return right_AT


def memory_of(predictor: ModelPredictor, ids: np.ndarray, number: int) -> MemoryState:
    """Memory of a document that is read with none, at its last whole segment."""
    inputs_1T = inputs_of(predictor, ids)
    whole = inputs_1T.shape[1] // predictor.segment * predictor.segment
    if not whole:
        raise ValueError(
            f"document {number} has {len(ids):,} tokens, less than a segment of "
            f"{predictor.segment:,}: nothing of it enters memory"
        )
    return predictor.read(inputs_1T[:, :whole], predictor.begin(1))[1].memory


def table(found: list[dict[str, Any]]) -> str:
    """The shares in lines."""
    head = "".join(f"{arm:>8}" for arm in ARMS)
    lines = [
        f"documents between{'questions':>11}{'key right':>11}{'taken right':>13}{head}  begun with"
    ]
    for row in found:
        shares = "".join(f"{row['right'][arm]:>8.1%}" for arm in ARMS)
        lines.append(
            f"{row['gap']:>17}{row['questions']:>11}{row['nearest']:>11.1%}"
            f"{row['found']:>13.1%}{shares}"
        )
    return "\n".join(lines)
