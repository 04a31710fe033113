"""Whatever assigns probabilities to a stream of tokens: one interface for scores, compression,
generation and tasks.

Shapes: B lanes of text, T tokens, t new tokens, D width of hidden states, V vocabulary.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from data.common.requirements import require_memory
from data.tokenizers.registry import Tokenizer
from lm.model.components import cross_entropy
from lm.model.incremental import Reader
from lm.model.memory import MemoryState
from lm.model.transformer import CompressiveTransformer


class State(Protocol):
    """What a predictor knows of some lanes of text. It belongs to who holds it: reading on may
    change it, and gives back what is to be used from then on.
    """

    @property
    def lanes(self) -> int:
        """Number of lanes B."""
        ...

    def reset(self, reset_B: Tensor) -> Self:
        """The same with nothing read in the lanes where `reset_B` (bool) is true."""
        ...

    def select(self, lanes: Sequence[int]) -> Self:
        """Some lanes, in any order and number; each goes on for itself."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, from which `Predictor.restore` makes it again."""
        ...


StateT = TypeVar("StateT", bound=State)


class Predictor(ABC, Generic[StateT]):
    """Probabilities of what follows in streams of text, several side by side."""

    vocabulary: Tokenizer
    segment: int
    """Tokens that are best read at once."""
    warmup: int
    """Tokens that a score reads by default before those that it counts."""
    at_once: int = 4096
    """Tokens of each lane that a prompt is read by; fewer where much is made of each."""

    @property
    def device(self) -> torch.device:
        """Where tokens are read."""
        return torch.device("cpu")

    @abstractmethod
    def begin(self, lanes: int) -> StateT:
        """What it knows of lanes that have read nothing."""

    @abstractmethod
    def read(
        self, tokens_Bt: Tensor, state: StateT, counts: Sequence[int] | None = None
    ) -> tuple[Tensor, StateT]:
        """Read on.

        Args:
            tokens_Bt: new tokens of every lane, int64.
            state: what was read before.
            counts: how many of them each lane reads, from the left; none: all.

        Returns:
            For each token what `logits` makes probabilities of what follows from, [B, t, ...], of
            any content where a lane does not read; and the state afterwards.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Unnormalised log-probabilities [..., V] of what follows, from what `read` returns."""
        return hidden

    def nats(self, hidden: Tensor, targets_BT: Tensor) -> Tensor:
        """Negative log-likelihoods of targets [B, T]."""
        logits_BTV = self.logits(hidden)
        return cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten()).view(targets_BT.shape)

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor]) -> StateT:
        """The inverse of `State.tensors`."""


class ModelState:
    """What a Compressive Transformer has read: memory, and an open segment if there is one.

    Whole segments go from memory to memory. When fewer tokens come than a segment has, a Reader
    takes over, which keeps keys and values of the open segment.
    """

    def __init__(self, memory: MemoryState, reader: Reader | None = None) -> None:
        self._memory, self.reader = memory, reader

    @property
    def memory(self) -> MemoryState:
        """Memory of the segments that are complete."""
        return self._memory if self.reader is None else self.reader.memory

    @property
    def lanes(self) -> int:
        """Number of lanes B."""
        return self._memory.lanes if self.reader is None else self.reader.lanes

    def reset(self, reset_B: Tensor) -> "ModelState":
        """The same with empty memory in some lanes; see State."""
        if self.reader is not None:
            raise ValueError("lanes are reset between whole segments only")
        return ModelState(self._memory.reset(reset_B))

    def select(self, lanes: Sequence[int]) -> "ModelState":
        """Some lanes; see State."""
        if self.reader is not None:
            return ModelState(self._memory, self.reader.select(lanes))
        index = torch.tensor(list(lanes), device=self._memory.memory_count.device)
        return ModelState(self._memory.lane_slice(index))

    def tensors(self) -> dict[str, Tensor]:
        """Memory by name; see State."""
        if self.reader is not None:
            raise ValueError("a state is kept between whole segments only")
        return self._memory.tensors()


class ModelPredictor(Predictor[ModelState]):
    """A Compressive Transformer."""

    def __init__(
        self, model: CompressiveTransformer, vocabulary: Tokenizer, keep_keys: bool = True
    ) -> None:
        """A predictor around a model, which is read in evaluation mode; its mode is restored.

        Args:
            model: what predicts.
            vocabulary: what its tokens stand for.
            keep_keys: keep keys and values of memory from segment to segment instead of projecting
                memory anew; needs weights that do not change.

        Raises:
            ValueError: the model has another number of tokens.
        """
        if vocabulary.size != model.vocabulary:
            raise ValueError(
                f"the text has a vocabulary of {vocabulary.size} tokens and the model one of "
                f"{model.vocabulary}; prepare the text with the model's"
            )
        self.model, self.vocabulary, self.keep_keys = model, vocabulary, keep_keys
        config = model.config
        self.segment = config.segment
        self.warmup = max(config.memory + config.rate * config.compressed, config.filtered)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.embedding.weight.device

    def begin(self, lanes: int) -> ModelState:
        """Empty memory.

        Raises:
            ValueError: this machine could never hold so many lanes.
        """
        require_room(self.model, lanes)
        memory = self.model.empty_memory(lanes)
        return ModelState(keeping_keys(self.model, memory) if self.keep_keys else memory)

    @torch.no_grad()
    def read(
        self, tokens_Bt: Tensor, state: ModelState, counts: Sequence[int] | None = None
    ) -> tuple[Tensor, ModelState]:
        """Final hidden states [B, t, D]; see Predictor."""
        with evaluating(self.model):
            whole = tokens_Bt.shape[1] % self.segment == 0
            if state.reader is None and counts is None and whole:
                return self.read_segments(tokens_Bt, state)
            if state.reader is None:
                state = ModelState(state.memory, self.reader(state.memory))
            assert state.reader is not None
            return state.reader.read(tokens_Bt, counts), state

    def reader(self, memory: MemoryState) -> Reader:
        """What reads tokens of an open segment after `memory`."""
        return Reader(self.model, memory)

    def read_segments(self, tokens_BT: Tensor, state: ModelState) -> tuple[Tensor, ModelState]:
        """Whole segments, as in training."""
        hidden, memory = [], state.memory
        for part in tokens_BT.split(self.segment, dim=1):
            states = self.model.read_segment(part, memory)
            hidden.append(states.hidden_BTD)
            memory = states.memory
        return hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=1), ModelState(memory)

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Of the model's head, [B, T, V]."""
        logits: Tensor = self.model.head(hidden)
        return logits

    @torch.no_grad()
    def nats(self, hidden: Tensor, targets_BT: Tensor) -> Tensor:
        """Of the model's head, which may go through its logits in parts."""
        nats: Tensor = self.model.head(hidden, targets_BT)
        return nats

    def restore(self, tensors: Mapping[str, Tensor]) -> ModelState:
        """Memory by name; ValueError where it is not complete."""
        placed = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        return ModelState(MemoryState.from_tensors(placed))


def require_room(model: CompressiveTransformer, lanes: int) -> None:
    """Refuse lengths and lanes that this machine could never hold, before anything is allocated.

    Raises:
        ValueError: there is too little memory.
    """
    config, weight = model.config, model.embedding.weight
    slots = sum(config.at(layer).slots for layer in range(config.layers))
    each = config.width + 2 * config.stored_heads * config.head_width
    # A segment is there twice besides, before and after a layer.
    numbers = slots * each + 2 * config.segment * config.width + config.layers * config.filters
    there = None
    if weight.device.type == "cuda":
        there = torch.cuda.get_device_properties(weight.device).total_memory
    require_memory(
        lanes * numbers * weight.element_size(),
        f"reading {lanes:,} lanes with segment {config.segment:,}, memory {config.memory:,} and "
        f"compressed {config.compressed:,}",
        there,
    )


def keeping_keys(model: CompressiveTransformer, empty: MemoryState) -> MemoryState:
    """Empty memory that keeps keys and values. Nobody reads those of empty slots, so no weight is
    needed, which ZeRO stage 3 would not have at hand here.
    """
    config = model.config

    def nothing(layer: int) -> Tensor:
        shape = (empty.lanes, config.stored_heads, config.at(layer).slots, config.head_width)
        return empty.memory[layer].new_zeros(shape)

    # Keys and values of their own, because what is saved may not share memory.
    keys, values = (tuple(nothing(layer) for layer in range(config.layers)) for _ in range(2))
    return empty.with_named(keys=keys, values=values)


@contextmanager
def evaluating(model: CompressiveTransformer) -> Iterator[None]:
    """Put a model into evaluation mode, and back into the mode it was in."""
    if not model.training:
        # To go through all modules twice would be a quarter of a token's time.
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()
