"""Kinds of memory beside the two: slots at the far end, before compressed memory.

A kind says what it keeps of a lane by name (`init`), what of that attention reads (`read`), and
how a segment changes it (`commit`); the rest of the house (lanes, checkpoints, files, sessions)
works over the names. A lane that is reset has counts of zero, and a kind must then behave as after
`init`. To add one, write it and enter it in PINNED; `model.memories` names it.

Attention sees [pinned ; compressed ; memory ; segment]. Pinned slots have a fixed place at the far
end with rotary positions and none with relative ones, where their scores are content alone.

Shapes: B lanes, k slots, T tokens of a segment, D width.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lm.model.memory import LayerMemory
from lm.model.model_config import ModelConfig


class PinnedMemory(nn.Module):
    """A kind of memory, of one layer."""

    number: int
    """Slots k that attention sees."""

    def init(self, like_BD: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """What is kept of lanes that have read nothing: tensors by name, lane first; none unless a
        kind says otherwise.

        Args:
            like_BD: gives number of lanes, device and type.
        """
        return {}

    def live(self, counts: Mapping[str, Tensor]) -> Tensor:
        """Which slots attention may see, [B, k] bool.

        Args:
            counts: of the lanes, among them `read`, the tokens that each has read.
        """
        raise NotImplementedError

    def read(self, kept: LayerMemory, lanes: int) -> Tensor:
        """Slots for attention, [B, k, D], normed as its inputs are; those not live may hold
        anything finite.

        Args:
            kept: what the layer keeps, under the names of `init` and of others.
            lanes: number of lanes.
        """
        raise NotImplementedError

    def commit(
        self,
        kept: LayerMemory,  # noqa: ARG002
        counts: Mapping[str, Tensor],  # noqa: ARG002
        inputs_BTD: Tensor,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """What is kept after a segment, under the names of `init`.

        Args:
            kept: what was kept before.
            counts: of the lanes before the segment.
            inputs_BTD: normed inputs of attention, without gradient.
        """
        return {}


class FirstTokens(PinnedMemory):
    """The first tokens that a lane has read, visible from when they leave memory on.

    As long as memory holds them, they are read there, so that memory which covers a text equals
    full attention.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.number, self.memory = config.sinks, config.memory

    def init(self, like_BD: Tensor) -> dict[str, Tensor]:
        """Nothing read yet."""
        lanes, width = like_BD.shape
        return {"sinks": like_BD.new_zeros(lanes, self.number, width)}

    def live(self, counts: Mapping[str, Tensor]) -> Tensor:
        """Those that memory has lost."""
        index = torch.arange(self.number, device=counts["read"].device)
        return index < (counts["read"] - self.memory)[:, None]

    def read(self, kept: LayerMemory, lanes: int) -> Tensor:  # noqa: ARG002
        """As they were stored."""
        return kept["sinks"]

    def commit(
        self, kept: LayerMemory, counts: Mapping[str, Tensor], inputs_BTD: Tensor
    ) -> dict[str, Tensor]:
        """Kept from the first segment."""
        first = (counts["read"] == 0)[:, None, None]
        return {"sinks": torch.where(first, inputs_BTD[:, : self.number], kept["sinks"])}


class LearntSinks(PinnedMemory):
    """Learnt vectors, which every lane sees from the beginning."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.number = config.sinks
        self.weight = nn.Parameter(torch.empty(config.sinks, config.width))

    def live(self, counts: Mapping[str, Tensor]) -> Tensor:
        """All."""
        return torch.ones_like(counts["read"], dtype=torch.bool)[:, None].expand(-1, self.number)

    def read(self, kept: LayerMemory, lanes: int) -> Tensor:  # noqa: ARG002
        """The vectors."""
        return self.weight.expand(lanes, -1, -1)


PINNED: dict[str, Callable[[ModelConfig], PinnedMemory]] = {
    "first_tokens": FirstTokens,
    "learnt": LearntSinks,
}


def pinned_memories(config: ModelConfig) -> list[PinnedMemory]:
    """The kinds that a layer has, farthest first.

    Raises:
        ValueError: a kind that is not known.
    """
    names = ([config.sink] if config.sinks else []) + list(config.memories)
    others = sorted(PINNED.keys() - {"first_tokens", "learnt"})
    for name in config.memories:
        if name not in others:
            raise ValueError(
                f"model.memories names {name!r}; known are {', '.join(others) or 'none'} "
                "(model.sinks and model.sink make attention sinks)"
            )
    return [PINNED[name](config) for name in names]
