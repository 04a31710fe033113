"""Memory as a value: what a model knows of the past, and how it moves on.

Shapes: B lanes, M memory slots, C compressed slots, T tokens of a segment, w slots that they are
compressed to, D width, d dimensions of a head.
Slots are oldest first and live slots stand at the right end, next to the segment.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lm.model.model_config import ModelConfig

LayerMemory = Mapping[str, Tensor]
"""What one layer keeps, by name, lane first. Every layer has

    memory      [B, M, D]  normed inputs of the attention sub-layer
    compressed  [B, C, D]  compressed blocks of older memory

and, where they are kept (`CompressiveTransformer.keep_keys`), what attention projects
[compressed ; memory] to, without positions, [B, K, C + M, d] with K key-value heads:

    keys, values           they belong to fixed weights

and whatever the kinds of memory in lm/model/pinned.py, and filters (lm/model/filters.py), add."""


class View(NamedTuple):
    """What lanes may see while they read a segment, [B] bool each."""

    no_memory_B: Tensor
    """Lanes that see no memory, and nothing else of the past but compressed memory."""
    no_compressed_B: Tensor
    """Lanes that see no compressed memory."""
    blank_B: Tensor
    """Lanes that see of the segment only that there are places: embeddings are zero."""
    apart_B: Tensor
    """Lanes that only look: nothing of theirs is compressed, and the memory that comes out for them
    is of no use."""


@dataclass(frozen=True)
class MemoryState:
    """What a model keeps of the past: named tensors for each layer, named counts for each lane.

    All that lanes do is written here once, over the names; so is the way to disk and back.
    Empty slots may hold anything: whoever reads memory masks them by the counts. A lane whose
    counts are zero has read nothing.
    """

    layers: tuple[LayerMemory, ...]
    counts: Mapping[str, Tensor]
    """[B] int64 each: live slots of `memory` and of `compressed`; where a kind of memory asks for
    it, tokens `read`."""

    @staticmethod
    def empty(
        config: ModelConfig, lanes: int, device: torch.device | str, dtype: torch.dtype
    ) -> "MemoryState":
        """Both memories of `lanes` lanes, in which no slot is live."""

        def zeros(slots: int) -> Tensor:
            return torch.zeros(lanes, slots, config.width, device=device, dtype=dtype)

        layers = [config.at(layer) for layer in range(config.layers)]
        count = torch.zeros(lanes, dtype=torch.int64, device=device)
        return MemoryState(
            tuple(
                {"memory": zeros(layer.memory), "compressed": zeros(layer.compressed)}
                for layer in layers
            ),
            {"memory": count, "compressed": count.clone()},
        )

    @property
    def lanes(self) -> int:
        """Number of lanes B."""
        return self.memory_count.shape[0]

    @property
    def kept(self) -> bool:
        """Whether keys and values are kept."""
        return "keys" in self.layers[0]

    @property
    def memory(self) -> tuple[Tensor, ...]:
        """Memory of every layer, [B, M, D]."""
        return tuple(layer["memory"] for layer in self.layers)

    @property
    def compressed(self) -> tuple[Tensor, ...]:
        """Compressed memory of every layer, [B, C, D]."""
        return tuple(layer["compressed"] for layer in self.layers)

    @property
    def memory_count(self) -> Tensor:
        """[B], live slots of memory."""
        return self.counts["memory"]

    @property
    def compressed_count(self) -> Tensor:
        """[B], live slots of compressed memory."""
        return self.counts["compressed"]

    def tensors(self) -> dict[str, Tensor]:
        """All of it under flat names, `memory.0`, ..., `memory_count`, ...: what goes to disk."""
        flat = {
            f"{name}.{index}": tensor
            for index, layer in enumerate(self.layers)
            for name, tensor in layer.items()
        }
        return flat | {f"{name}_count": count for name, count in self.counts.items()}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> "MemoryState":
        """The inverse of `tensors`; ValueError where layers do not follow each other or a name is
        of neither form.
        """
        layers: dict[int, dict[str, Tensor]] = {}
        counts = {}
        for flat, tensor in tensors.items():
            name, _, index = flat.rpartition(".")
            if name and index.isdecimal():
                layers.setdefault(int(index), {})[name] = tensor
            elif flat.endswith("_count"):
                counts[flat.removesuffix("_count")] = tensor
            else:
                raise ValueError(f"{flat} is no part of a memory")
        if sorted(layers) != list(range(len(layers))) or not {"memory", "compressed"} <= {*counts}:
            raise ValueError("a part of the memory is missing")
        return MemoryState(tuple(layers[index] for index in range(len(layers))), counts)

    def map(self, function: Callable[[Tensor], Tensor]) -> "MemoryState":
        """Apply a function to every tensor (each has the lane as its first dimension)."""
        return self.join([self], lambda tensors: function(tensors[0]))

    @staticmethod
    def join(
        states: list["MemoryState"], function: Callable[[list[Tensor]], Tensor]
    ) -> "MemoryState":
        """A state of what `function` makes of the tensors that several states have by one name."""
        first = states[0]
        return MemoryState(
            tuple(
                {name: function([state.layers[i][name] for state in states]) for name in layer}
                for i, layer in enumerate(first.layers)
            ),
            {name: function([state.counts[name] for state in states]) for name in first.counts},
        )

    def detach(self) -> "MemoryState":
        """The same memory, cut off from the graph that made it."""
        return self.map(Tensor.detach)

    def lane_slice(self, lanes: slice | Tensor) -> "MemoryState":
        """The memory of some lanes, by slice or index."""
        return self.map(lambda tensor: tensor[lanes])

    def with_lanes(self, lanes_n: Tensor, part: "MemoryState") -> "MemoryState":
        """The same with other memory in some lanes, given by index."""
        return self.join([self, part], lambda pair: pair[0].index_copy(0, lanes_n, pair[1]))

    @staticmethod
    def concatenate(parts: list["MemoryState"]) -> "MemoryState":
        """Join the lanes of several states, in order."""
        return MemoryState.join(parts, torch.cat)

    def reset(self, reset_B: Tensor) -> "MemoryState":
        """Forget everything in the lanes where `reset_B` is true."""
        return self.with_counts(**{name: count * ~reset_B for name, count in self.counts.items()})

    def seen(self, view: View) -> "MemoryState":
        """The same with nothing live in what lanes may not see."""
        hidden = dict.fromkeys(self.counts, view.no_memory_B)
        hidden["compressed"] = view.no_compressed_B
        return self.with_counts(**{name: n * ~hidden[name] for name, n in self.counts.items()})

    def with_counts(self, **counts: Tensor) -> "MemoryState":
        """The same with other counts."""
        return replace(self, counts={**self.counts, **counts})

    def with_named(self, **named: tuple[Tensor, ...]) -> "MemoryState":
        """The same with tensors added or replaced, given for every layer by name."""
        layers = (
            {**layer, **{name: tensors[i] for name, tensors in named.items()}}
            for i, layer in enumerate(self.layers)
        )
        return replace(self, layers=tuple(layers))

    def zero_filled(
        self, config: ModelConfig, kept: Sequence[Mapping[str, Tensor]] = ()
    ) -> "MemoryState":
        """The same with zero vectors in every empty slot, which count as live from now on; `kept`:
        by layer, the keys and values that such a slot has, where these are kept and not zero.
        """
        compressed = live_mask(self.compressed_count, config.compressed)
        memory = live_mask(self.memory_count, config.memory)
        both = torch.cat([compressed, memory], dim=1)[:, None]
        live = {"memory": memory, "compressed": compressed, "keys": both, "values": both}

        def fill(name: str, slots: Tensor, empty: Mapping[str, Tensor]) -> Tensor:
            # A layer without memory has no slots at all.
            if name not in live or not slots.shape[-2]:
                return slots
            return torch.where(live[name][..., None], slots, empty.get(name, 0.0))

        layers = (
            {name: fill(name, slots, empty) for name, slots in layer.items()}
            for layer, empty in zip(self.layers, kept or [{}] * len(self.layers), strict=True)
        )
        return replace(self, layers=tuple(layers)).with_counts(
            memory=torch.full_like(self.memory_count, config.memory),
            compressed=torch.full_like(self.compressed_count, config.compressed),
        )


@dataclass(frozen=True)
class Counts:
    """How the live counts move when T tokens enter (each [B]; int64 where nothing else is said)."""

    before: Mapping[str, Tensor]
    """All counts before the tokens enter."""
    after: Mapping[str, Tensor]
    """And afterwards."""
    evicted: Tensor
    """Live slots among the T oldest of [memory ; segment]."""
    new_compressed: Tensor
    """Live slots among the w that they are compressed to."""
    hidden_B: Tensor | None = None
    """Lanes that do not see what filters hold, which moves on all the same; bool, none: no lane."""

    @property
    def begun(self) -> Tensor:
        """Whether compressed memory held anything before; bool."""
        return self.before["compressed"] > 0

    def viewed(self, view: View) -> "Counts":
        """The same where lanes see only a part; filters are hidden with memory."""
        kept_B = ~view.apart_B
        return replace(
            self,
            evicted=self.evicted * kept_B,
            new_compressed=self.new_compressed * kept_B,
            hidden_B=view.no_memory_B,
        )


def advance_counts(config: ModelConfig, state: MemoryState, tokens: int) -> Counts:
    """Live counts before and after `tokens` tokens enter memory."""
    before = state.counts
    evicted = (before["memory"] + tokens - config.memory).clamp(0, tokens)
    new_compressed = (evicted + config.rate - 1) // config.rate
    after = {
        "memory": (before["memory"] + tokens).clamp(max=config.memory),
        "compressed": (before["compressed"] + new_compressed).clamp(max=config.compressed),
    }
    if "read" in before:
        after["read"] = before["read"] + tokens
    return Counts(before, after, evicted, new_compressed)


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
    old, new = memory_BMD.detach(), inputs_BTD.detach()
    recent = push(old, new)
    # The two are joined only where it cannot be avoided.
    if old.shape[1] < tokens + config.overlap:
        old = torch.cat([old, new], dim=1)
    leaving = F.pad(old[:, : tokens + config.overlap], (0, 0, slots - tokens, 0))
    live = live_mask(evicted_B, slots)
    if config.overlap:
        # Memory is full wherever something leaves it.
        live = torch.cat([live, (evicted_B > 0)[:, None].expand(-1, config.overlap)], dim=1)
    leaving = torch.where(live[:, :, None], leaving, 0.0)
    return leaving, live, recent


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
