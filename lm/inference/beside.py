"""Two readings of one text side by side: with memory, and by a predictor that forgets.

What the second does not see is what the first may have from afar: their difference is what memory
is worth (eval.worth), and written with more of it a text leans on memory more
(`generate --memory-weight`).

Shapes as in predictor.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Generic

import torch
from torch import Tensor

from data.tokenizers.registry import Tokenizer
from lm.inference.inference_config import Local
from lm.inference.predictor import ModelPredictor, ModelState, Predictor, StateT
from lm.model.incremental import Reader
from lm.model.memory import MemoryState
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer


def local_of(config: ModelConfig, asked: Local | None, trained: Local | None = None) -> Local:
    """What the local reading sees: what is asked for, else what it saw in training, else memory
    without compressed memory, or the segment alone where there is none.

    Raises:
        ValueError: nothing would be forgotten.
    """
    found = asked or trained or ("memory" if config.compressed else "segment")
    if not config.slots:
        raise ValueError("the model has no memory to forget; set memory or compressed above 0")
    if found == "memory" and not config.compressed:
        raise ValueError(
            "the model has no compressed memory to forget; let the local reading see the segment "
            "alone (local segment), or set compressed above 0"
        )
    return found


class Forgetful(ModelPredictor):
    """A Compressive Transformer that forgets after each segment: all, so that it knows the segment
    alone, or compressed memory, so that it is a Transformer-XL of the same weights.
    """

    def __init__(self, model: CompressiveTransformer, vocabulary: Tokenizer, local: Local) -> None:
        """As ModelPredictor; `local`: what it sees."""
        super().__init__(model, vocabulary)
        self.local = local

    def forget(self, memory: MemoryState) -> MemoryState:
        """Memory after a segment, as the next one is to see it."""
        if self.local == "segment":
            memory = memory.reset(torch.ones_like(memory.memory_count, dtype=torch.bool))
        else:
            memory = memory.with_counts(compressed=torch.zeros_like(memory.compressed_count))
        return self.model.readable(memory)

    def reader(self, memory: MemoryState) -> Reader:
        """A reader that forgets too."""
        return Reader(self.model, memory, self.forget)

    def read_segments(self, tokens_BT: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Whole segments."""
        hidden, memory = [], state.memory
        for part in tokens_BT.split(self.segment, dim=1):
            states = self.model.read_segment(part, memory)
            hidden.append(states.hidden_BTD)
            memory = self.forget(states.memory)
        return torch.cat(hidden, dim=1), ModelState(memory)


class PairState(Generic[StateT]):
    """What two predictors know of the same lanes."""

    def __init__(self, full: StateT, local: StateT) -> None:
        self.full, self.local = full, local

    @property
    def lanes(self) -> int:
        """Number of lanes B."""
        return self.full.lanes

    def reset(self, reset_B: Tensor) -> "PairState[StateT]":
        """The same with nothing read in some lanes; see State."""
        return PairState(self.full.reset(reset_B), self.local.reset(reset_B))

    def select(self, lanes: Sequence[int]) -> "PairState[StateT]":
        """Some lanes; see State."""
        return PairState(self.full.select(lanes), self.local.select(lanes))

    def tensors(self) -> dict[str, Tensor]:
        """Both by name; see State."""
        parts = {"full": self.full.tensors(), "local": self.local.tensors()}
        return {f"{which}.{n}": t for which, part in parts.items() for n, t in part.items()}


class Beside(Predictor[PairState[Any]]):
    """Two predictors of one vocabulary that read the same tokens in segments of the same length.

    It predicts full + (weight - 1) (full - local) of their unnormalised log-probabilities, as
    context-aware decoding does (Shi et al., arXiv 2305.14739): at 1 what the full reading does, at
    0 what the local one does, above 1 what memory tells counts for more.
    """

    def __init__(self, full: Predictor[Any], local: Predictor[Any], weight: float = 1.0) -> None:
        assert full.segment == local.segment
        self.full, self.local, self.weight = full, local, weight
        self.vocabulary, self.segment, self.warmup = full.vocabulary, full.segment, full.warmup

    @property
    def device(self) -> torch.device:
        """That of both."""
        return self.full.device

    def begin(self, lanes: int) -> PairState[Any]:
        """Nothing read by either."""
        return PairState(self.full.begin(lanes), self.local.begin(lanes))

    def read(
        self, tokens_Bt: Tensor, state: PairState[Any], counts: Sequence[int] | None = None
    ) -> tuple[Tensor, PairState[Any]]:
        """What both return, [B, t, 2, ...]; see Predictor."""
        full, knows = self.full.read(tokens_Bt, state.full, counts)
        local, guesses = self.local.read(tokens_Bt, state.local, counts)
        return torch.stack([full, local], dim=2), PairState(knows, guesses)

    def both(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Unnormalised log-probabilities [..., V] of the full and of the local reading."""
        full, local = hidden.unbind(dim=2)
        return self.full.logits(full), self.local.logits(local)

    def logits(self, hidden: Tensor) -> Tensor:
        """Of what both say together; see the class."""
        if self.weight == 1:
            return self.full.logits(hidden[:, :, 0])
        full, local = self.both(hidden)
        return full + (self.weight - 1) * (full - local)

    def restore(self, tensors: Mapping[str, Tensor]) -> PairState[Any]:
        """Both by name."""
        parts: dict[str, dict[str, Tensor]] = {"full": {}, "local": {}}
        for name, tensor in tensors.items():
            which, _, own = name.partition(".")
            parts[which][own] = tensor
        return PairState(self.full.restore(parts["full"]), self.local.restore(parts["local"]))
