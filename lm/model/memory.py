"""Memory as a value: what a model knows of the past, and how it moves on.

Shapes: B lanes, M memory slots, C compressed slots, T tokens of a segment, w slots that they are
compressed to, D width, H heads of d dimensions.
Slots are oldest first and live slots stand at the right end, next to the segment.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lm.model.config import ModelConfig
from lm.model.slots import Slots


@dataclass(frozen=True)
class MemoryState:
    """Both memories of every layer, and how many slots are live in each lane.

    Empty slots may hold anything: whoever reads memory masks them by the counts.
    """

    memory: tuple[Tensor, ...]
    """Per layer [B, M, D]: layer-normed inputs of the attention sub-layer."""
    compressed: tuple[Tensor, ...]
    """Per layer [B, C, D]: compressed blocks of older memory."""
    memory_count: Tensor
    """[B] int64, live slots of memory."""
    compressed_count: Tensor
    """[B] int64, live slots of compressed memory."""
    keys: tuple[Tensor, ...] = ()
    """Per layer [B, H, C + M, d], what attention projects [compressed ; memory] to, without
    positions; or nothing, and then it is projected anew for each segment. Kept keys and values
    belong to fixed weights."""
    values: tuple[Tensor, ...] = ()

    @staticmethod
    def empty(
        config: ModelConfig, lanes: int, device: torch.device | str, dtype: torch.dtype
    ) -> "MemoryState":
        """Memory of `lanes` lanes in which no slot is live."""

        def zeros(slots: int) -> Tensor:
            return torch.zeros(lanes, slots, config.width, device=device, dtype=dtype)

        layers = [config.at(layer) for layer in range(config.layers)]
        count = torch.zeros(lanes, dtype=torch.int64, device=device)
        return MemoryState(
            tuple(zeros(layer.memory) for layer in layers),
            tuple(zeros(layer.compressed) for layer in layers),
            count,
            count.clone(),
        )

    @property
    def lanes(self) -> int:
        """Number of lanes B."""
        return self.memory_count.shape[0]

    def map(self, function: Callable[[Tensor], Tensor]) -> "MemoryState":
        """Apply a function to every tensor (each has the lane as its first dimension)."""
        return MemoryState(
            tuple(function(slots) for slots in self.memory),
            tuple(function(slots) for slots in self.compressed),
            function(self.memory_count),
            function(self.compressed_count),
            tuple(function(keys) for keys in self.keys),
            tuple(function(values) for values in self.values),
        )

    def layer(self, index: int) -> "LayerMemory":
        """What one layer has."""
        kept = Slots(self.keys[index], self.values[index]) if self.keys else None
        return LayerMemory(self.memory[index], self.compressed[index], kept)

    @staticmethod
    def of_layers(layers: list["LayerMemory"], counts: "Counts") -> "MemoryState":
        """Memory after a segment."""
        kept = [layer.kept for layer in layers if layer.kept is not None]
        return MemoryState(
            tuple(layer.memory_BMD for layer in layers),
            tuple(layer.compressed_BCD for layer in layers),
            counts.memory,
            counts.compressed,
            tuple(keys for keys, _ in kept),
            tuple(values for _, values in kept),
        )

    def detach(self) -> "MemoryState":
        """The same memory, cut off from the graph that made it."""
        return self.map(Tensor.detach)

    def lane_slice(self, lanes: slice | Tensor) -> "MemoryState":
        """The memory of some lanes, by slice or index."""
        return self.map(lambda tensor: tensor[lanes])

    def with_lanes(self, lanes_n: Tensor, part: "MemoryState") -> "MemoryState":
        """The same with other memory in some lanes, given by index."""

        def put(name: str) -> tuple[Tensor, ...]:
            layers = zip(getattr(self, name), getattr(part, name), strict=True)
            return tuple(mine.index_copy(0, lanes_n, other) for mine, other in layers)

        return MemoryState(
            put("memory"),
            put("compressed"),
            self.memory_count.index_copy(0, lanes_n, part.memory_count),
            self.compressed_count.index_copy(0, lanes_n, part.compressed_count),
            put("keys"),
            put("values"),
        )

    @staticmethod
    def concatenate(parts: list["MemoryState"]) -> "MemoryState":
        """Join the lanes of several states, in order."""

        def join(name: str) -> tuple[Tensor, ...]:
            layers = zip(*(getattr(part, name) for part in parts), strict=True)
            return tuple(torch.cat(layer) for layer in layers)

        return MemoryState(
            join("memory"),
            join("compressed"),
            torch.cat([p.memory_count for p in parts]),
            torch.cat([p.compressed_count for p in parts]),
            join("keys"),
            join("values"),
        )

    def reset(self, reset_B: Tensor) -> "MemoryState":
        """Forget everything in the lanes where `reset_B` is true."""
        keep = ~reset_B
        return replace(
            self,
            memory_count=self.memory_count * keep,
            compressed_count=self.compressed_count * keep,
        )

    def zero_filled(self, config: ModelConfig) -> "MemoryState":
        """The same with zero vectors in every empty slot, which count as live from now on."""
        compressed = live_mask(self.compressed_count, config.compressed)
        memory = live_mask(self.memory_count, config.memory)
        both = torch.cat([compressed, memory], dim=1)[:, None]

        def fill(layers: tuple[Tensor, ...], live: Tensor) -> tuple[Tensor, ...]:
            # A layer without memory has no slots at all.
            return tuple(
                torch.where(live[..., None], slots, 0.0) if slots.shape[-2] else slots
                for slots in layers
            )

        return MemoryState(
            fill(self.memory, memory),
            fill(self.compressed, compressed),
            torch.full_like(self.memory_count, config.memory),
            torch.full_like(self.compressed_count, config.compressed),
            fill(self.keys, both),
            fill(self.values, both),
        )


class LayerMemory(NamedTuple):
    """Memory of one layer."""

    memory_BMD: Tensor
    compressed_BCD: Tensor
    kept: Slots | None
    """What [compressed ; memory] is projected to, if that is kept."""


@dataclass(frozen=True)
class Counts:
    """How the live counts move when T tokens enter (each [B]; int64 where nothing else is said)."""

    begun: Tensor
    """Whether compressed memory held anything before; bool."""
    evicted: Tensor
    """Live slots among the T oldest of [memory ; segment]."""
    new_compressed: Tensor
    """Live slots among the w that they are compressed to."""
    memory: Tensor
    """Live memory slots afterwards."""
    compressed: Tensor
    """Live compressed slots afterwards."""


def advance_counts(config: ModelConfig, state: MemoryState, tokens: int) -> Counts:
    """Live counts before and after `tokens` tokens enter memory."""
    evicted = (state.memory_count + tokens - config.memory).clamp(0, tokens)
    new_compressed = (evicted + config.rate - 1) // config.rate
    return Counts(
        begun=state.compressed_count > 0,
        evicted=evicted,
        new_compressed=new_compressed,
        memory=(state.memory_count + tokens).clamp(max=config.memory),
        compressed=(state.compressed_count + new_compressed).clamp(max=config.compressed),
    )


def live_mask(count_B: Tensor, slots: int) -> Tensor:
    """[B, slots] bool: the right-most `count_B` slots are live."""
    index = torch.arange(slots, device=count_B.device)
    return index >= slots - count_B[:, None]


def evict(
    config: ModelConfig, memory_BMD: Tensor, inputs_BTD: Tensor, evicted_B: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Move a segment into memory.

    Returns what leaves, its live slots, and the M slots that remain, all without gradient (the
    paper's stop-gradient on memory). What leaves are the T oldest slots of [memory ; segment],
    filled up in front to w windows of c, and the o slots behind them that stay but are read by the
    last window: [B, w c + o, D], empty ones zeroed. With n_m < n_s part of the segment itself
    leaves at once, as in the authors' code.
    """
    tokens = inputs_BTD.shape[1]
    slots = config.windows * config.rate
    leaving, recent = _split(memory_BMD.detach(), inputs_BTD.detach(), tokens + config.overlap)
    leaving = F.pad(leaving, (0, 0, slots - tokens, 0))
    live = live_mask(evicted_B, slots)
    if config.overlap:
        # Memory is full wherever something leaves it.
        live = torch.cat([live, (evicted_B > 0)[:, None].expand(-1, config.overlap)], dim=1)
    leaving = torch.where(live[:, :, None], leaving, 0.0)
    return leaving, live, recent


def _split(memory_BMD: Tensor, inputs_BTD: Tensor, leaving: int) -> tuple[Tensor, Tensor]:
    """The `leaving` oldest slots of [memory ; segment], and the M newest.

    The two are joined only where it cannot be avoided.
    """
    old = memory_BMD
    if memory_BMD.shape[1] < leaving:
        old = torch.cat([memory_BMD, inputs_BTD], dim=1)
    return old[:, :leaving], push(memory_BMD, inputs_BTD)


def push(slots: Tensor, new: Tensor) -> Tensor:
    """First in, first out along the last dimension but one: append new slots and drop as many of
    the oldest.

    What remains has memory of its own, of just its size: that of the new slots if they replace
    all, as in the paper's memory of one segment, and a copy otherwise. The copy costs little beside
    projecting the slots to keys and values; a queue of blocks would be spared it, and would have to
    be projected in parts, which costs more.
    """
    return new if new.shape == slots.shape else torch.cat(queue(slots, new), dim=-2)


def queue(slots: Tensor, new: Tensor) -> list[Tensor]:
    """The parts, oldest first, of what remains when new slots push out as many of the oldest."""
    count, entering = slots.shape[-2], new.shape[-2]
    if entering >= count:
        return [new.narrow(-2, entering - count, count)]
    return [slots.narrow(-2, entering, count - entering), new]
