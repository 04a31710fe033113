"""Hidden states of a split and the tokens that follow them, each token once.

Shapes: n tokens of a segment of every lane, N of all, D width.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from data.shards import Split
from lm.inference.inference_config import ScoringConfig
from lm.inference.predictor import ModelPredictor, ModelState
from lm.objectives.objective import Segment
from lm.scoring import Scorer


class Keeping(Scorer[ModelState]):
    """A pass over a split that keeps the hidden states of its last segment and counts no costs."""

    hidden_BTD: Tensor

    def read(self, segment: Segment, state: ModelState) -> tuple[Tensor, ModelState]:
        """Zeros in the place of costs; see Scorer."""
        self.hidden_BTD, state = self.predictor.read(segment.inputs_BT, state)
        return self.hidden_BTD.new_zeros(segment.targets_BT.shape), state


def states(
    predictor: ModelPredictor, split: Split, config: ScoringConfig, limit: int | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Hidden states float32 [n, D] and the tokens that follow them int32 [n], segment by segment of
    every lane.

    Args:
        predictor: the model.
        split: what it reads.
        config: lanes, warm-up and resets.
        limit: read only this many segments of each lane.
    """
    scorer = Keeping(predictor, split, config)
    for batch in scorer.through(limit, f"read {split.name}"):
        hidden_BTD = scorer.hidden_BTD.float().cpu().numpy()
        targets_n = batch.targets_BT[batch.scored_BT].astype(np.int32)
        yield hidden_BTD[batch.scored_BT], targets_n


def keys_and_values(
    predictor: ModelPredictor, split: Split, config: ScoringConfig, limit: int | None, file: Path
) -> tuple[Any, np.ndarray]:
    """All of `states`: keys [N, D], mapped from a file that is written, and values [N]."""
    values: list[np.ndarray] = []
    with file.open("wb") as keys:
        for hidden_nD, targets_n in states(predictor, split, config, limit):
            keys.write(hidden_nD.tobytes())
            values.append(targets_n)
    values_N = np.concatenate(values)
    shape = (len(values_N), predictor.model.config.width)
    return np.memmap(file, np.float32, "r", shape=shape), values_N


def some_states(
    predictor: ModelPredictor, split: Split, config: ScoringConfig, number: int
) -> np.ndarray:
    """Up to `number` hidden states [n, D] from the beginning of a split."""
    found: list[np.ndarray] = []
    for hidden_nD, _ in states(predictor, split, config):
        found.append(hidden_nD)
        if sum(map(len, found)) >= number:
            break
    return np.concatenate(found)[:number]
