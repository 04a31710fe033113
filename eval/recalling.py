"""A score in which each document goes on after the memory of a text that is like its beginning."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from data.common.say import say
from data.shards import Split
from lm.inference.episodes import Library, inputs_of
from lm.inference.inference_config import ScoringConfig
from lm.inference.predictor import ModelState
from lm.objectives.objective import Segment
from lm.scoring import Scorer


class RecallingScorer(Scorer[ModelState]):
    """Reads a document's opening as it is, and scores it. Then the opening is looked up, and read
    once more after the memory that was found: what follows is scored from there.

    Lanes begin documents whole: what is found hangs on the beginning alone. A document that ends
    within its opening looks up nothing, and one that no memory tells better goes on as it is.
    """

    def __init__(
        self,
        library: Library,
        split: Split,
        config: ScoringConfig,
        *,
        rows: slice = slice(None),
        cuts: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        super().__init__(library.predictor, split, config, rows=rows, cuts=cuts)
        self.library = library
        segment = library.predictor.segment
        self.opening = -(-library.opening // segment) * segment
        self.found: dict[int, int | None] = {}
        """The number of the memory that each document has begun with, or None."""

    def read(self, segment: Segment, state: ModelState) -> tuple[Tensor, ModelState]:
        """As a Scorer's; lanes whose opening ends with the segment go on after what is found."""
        nats_BT, state = super().read(segment, state)
        documents, memory = self.split.documents, state.memory
        through_B = self.batches.read_from + self.step >= self.batches.stop
        for lane, offset in enumerate(self.batch.offset_B[self.rows].tolist()):
            if through_B[self.rows][lane]:
                continue
            # Of documents that begin at one place all but the last are empty.
            number = int(documents["offset"].searchsorted(offset, side="right")) - 1
            start, size = int(documents["offset"][number]), int(documents["tokens"][number])
            read = offset - start + segment.inputs_BT.shape[1]
            if read != self.opening or size <= read:
                continue
            if (recalled := self._recalled(number, start)) is not None:
                lanes_n = torch.tensor([lane], device=memory.memory_count.device)
                memory = memory.with_lanes(lanes_n, recalled.memory)
        return nats_BT, ModelState(memory)

    def _recalled(self, number: int, start: int) -> ModelState | None:
        """What one document's lane knows after its opening, if memory is found for it."""
        predictor, library = self.library.predictor, self.library
        ids = np.asarray(self.split.tokens[start : start + self.opening - 1])
        choice = library.choose(ids)
        if number not in self.found:
            say(f"document {number} goes on after {library.spoken(choice)}")
        self.found[number] = choice.number
        if choice.number is None:
            return None
        begun = ModelState(library.memory(choice.number))
        _, state = predictor.read(inputs_of(predictor, ids), begun)
        return state
