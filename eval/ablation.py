"""What compressed memory is worth: scores with it taken away, emptied, shuffled, or exchanged.

The model reads the changed memory; what it carries on is its own, as if it had read the true one.
Shapes: B lanes, C compressed slots, D width.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.tokenizers.registry import Tokenizer
from lm.inference.predictor import ModelPredictor, ModelState
from lm.model.memory import MemoryState, advance_counts, live_mask, push
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.scoring import Scorer

Change = Callable[[ModelConfig, MemoryState, torch.Generator], MemoryState]


def intact(_: ModelConfig, memory: MemoryState, __: torch.Generator) -> MemoryState:
    """Memory as it is."""
    return memory


def absent(_: ModelConfig, memory: MemoryState, __: torch.Generator) -> MemoryState:
    """No compressed memory: every slot is empty and nothing attends to it."""
    return memory.with_counts(compressed=torch.zeros_like(memory.compressed_count))


def zeroed(_: ModelConfig, memory: MemoryState, __: torch.Generator) -> MemoryState:
    """Zero vectors in every slot, which attention still finds there."""
    return memory.with_named(compressed=tuple(map(torch.zeros_like, memory.compressed)))


def shuffled(config: ModelConfig, memory: MemoryState, generator: torch.Generator) -> MemoryState:
    """The same slots in another order, in each lane its own."""
    live_BC = live_mask(memory.compressed_count, config.compressed)
    draw_BC = torch.rand(live_BC.shape, generator=generator).to(live_BC.device)
    # Empty slots stay in front.
    order_BC = draw_BC.masked_fill(~live_BC, -1.0).argsort(dim=1, stable=True)

    def reorder(slots_BCD: Tensor) -> Tensor:
        if not slots_BCD.shape[1]:
            return slots_BCD
        return slots_BCD.gather(1, order_BC[:, :, None].expand(-1, -1, slots_BCD.shape[2]))

    return memory.with_named(compressed=tuple(map(reorder, memory.compressed)))


def exchanged(_: ModelConfig, memory: MemoryState, __: torch.Generator) -> MemoryState:
    """Compressed memory of the next lane, which reads another part of the split."""
    compressed = tuple(slots.roll(-1, dims=0) for slots in memory.compressed)
    return memory.with_named(compressed=compressed).with_counts(
        compressed=memory.compressed_count.roll(-1)
    )


CHANGES: dict[str, Change] = {
    "intact": intact,
    "absent": absent,
    "zeroed": zeroed,
    "shuffled": shuffled,
    "exchanged": exchanged,
}


class AblatedState(ModelState):
    """True memory, and how many segments were read, which the shuffles depend on."""

    def __init__(self, memory: MemoryState, step: int) -> None:
        super().__init__(memory)
        self.step = step

    def reset(self, reset_B: Tensor) -> "AblatedState":
        """The same with empty memory in some lanes."""
        return AblatedState(self.memory.reset(reset_B), self.step)


class AblatedPredictor(ModelPredictor):
    """A model that reads a changed compressed memory."""

    def __init__(
        self, model: CompressiveTransformer, vocabulary: Tokenizer, change: Change, seed: int = 0
    ) -> None:
        """As ModelPredictor; `seed` is that of the shuffles."""
        super().__init__(model, vocabulary, keep_keys=False)
        self.change, self.seed = change, seed

    def begin(self, lanes: int) -> AblatedState:
        """Empty memory."""
        return AblatedState(super().begin(lanes).memory, 0)

    def read_segments(self, tokens_BT: Tensor, state: ModelState) -> tuple[Tensor, AblatedState]:
        """A segment after changed memory."""
        assert isinstance(state, AblatedState)
        config, memory = self.model.config, state.memory
        generator = torch.Generator().manual_seed(self.seed + state.step)
        changed = self.change(config, memory, generator)
        hidden, after, *_ = self.model.read_segment(tokens_BT, changed)
        windows = config.windows
        compressed = tuple(
            push(true, read[:, -windows:])
            for true, read in zip(memory.compressed, after.compressed, strict=True)
        )
        counts = advance_counts(config, memory, config.segment)
        restored = after.with_named(compressed=compressed)
        restored = restored.with_counts(compressed=counts.after["compressed"])
        return hidden, AblatedState(restored, state.step + 1)


def foreign(scorer: Scorer[Any]) -> float:
    """Share of segments in which the next lane reads another document."""
    batches, offsets = scorer.batches, scorer.split.documents["offset"]
    shares = []
    for step in range(len(batches)):
        at_B = np.minimum(batches.read_from + step, batches.stop - 1)
        document_B = offsets.searchsorted(batches.position[at_B], side="right")
        shares.append((document_B != np.roll(document_B, -1)).mean())
    return float(np.mean(shares))
