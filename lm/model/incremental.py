"""Reading a stream a few tokens at a time, with the same results as whole segments.

Memory moves only when a segment is complete, so between two moves everything that memory
contributes to attention is constant: its keys and values and the position keys are computed once
a segment, and a new token costs one row of attention. Shapes as in attention.py; t new tokens.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lm.model.blocks import Entering
from lm.model.memory import MemoryState, advance_counts
from lm.model.transformer import CompressiveTransformer


class LayerCache(NamedTuple):
    """What one layer keeps of the open segment."""

    positions: Any
    """As its attention prepares them."""
    key_BHSd: Tensor
    """Placed keys of [compressed ; memory ; tokens read so far]."""
    value_BHSd: Tensor
    inputs_BtD: Tensor
    """Inputs of the tokens read so far, which will enter memory."""
    received_BS: Tensor | None
    """Attention that each key has received from them, if compression asks for it."""


@dataclass(frozen=True)
class OpenSegment:
    """A segment that is still being read; a value, like memory: extending it makes a new one."""

    memory: MemoryState
    """Memory before the segment."""
    live_BN: Tensor
    layers: tuple[LayerCache, ...]
    length: int
    """Tokens read so far."""


def open_segment(model: CompressiveTransformer, memory: MemoryState) -> OpenSegment:
    """Begin a segment after `memory`."""
    memory, layers = model.readable(model.keep_keys(memory)), []
    for index, block in enumerate(model.layers):
        layer, positions = memory.layer(index), block.attention.positions()
        assert layer.kept is not None
        key, value = layer.kept
        placed = block.attention.place(key, positions, 0)
        inputs = layer.memory_BMD.new_empty(memory.lanes, 0, model.config.width)
        layers.append(LayerCache(positions, placed, value, inputs, None))
    return OpenSegment(memory, model.live(memory), tuple(layers), 0)


def extend(
    model: CompressiveTransformer, tokens_Bt: Tensor, segment: OpenSegment
) -> tuple[Tensor, OpenSegment]:
    """Read t tokens that fit into the open segment; returns their logits [B, t, V].

    Raises:
        ValueError: more tokens than the segment has room for.
    """
    count, first = tokens_Bt.shape[1], segment.length
    if first + count > model.config.segment:
        raise ValueError(
            f"the open segment has room for {model.config.segment - first} tokens, not {count}"
        )
    hidden = model.embed(tokens_Bt)
    layers = []
    for block, cache in zip(model.layers, segment.layers, strict=True):
        inputs = block.inputs(hidden)
        attention, slots = block.attention, block.config.slots
        query, key, value = attention.queries_keys_values(inputs)
        key = attention.place(key, cache.positions, slots + first)
        key = torch.cat([cache.key_BHSd, key], dim=2)
        value = torch.cat([cache.value_BHSd, value], dim=2)
        reading = attention.reading(block.live(segment.live_BN), first)
        read, received = attention.read(query, key, value, cache.positions, reading)
        if received is not None and cache.received_BS is not None:
            received = received + F.pad(cache.received_BS, (0, count))
        hidden = block.after_attention(hidden, attention.join_heads(read))
        inputs = torch.cat([cache.inputs_BtD, inputs], dim=1)
        layers.append(LayerCache(cache.positions, key, value, inputs, received))
    logits = model.head(model.norm(hidden))
    return logits, replace(segment, layers=tuple(layers), length=first + count)


def close_segment(model: CompressiveTransformer, segment: OpenSegment) -> MemoryState:
    """Move a complete segment into memory, exactly as the model's forward does.

    Raises:
        ValueError: the segment is not complete.
    """
    config, before = model.config, segment.memory
    if segment.length != config.segment:
        raise ValueError(
            f"a segment enters memory when it has {config.segment} tokens, not {segment.length}"
        )
    counts = advance_counts(config, before, config.segment)
    layers = []
    for index, (block, cache) in enumerate(zip(model.layers, segment.layers, strict=True)):
        slots = block.config.slots
        key, value = cache.key_BHSd[:, :, slots:], cache.value_BHSd[:, :, slots:]
        key = block.attention.lift(key, cache.positions, slots)
        entering = Entering(cache.inputs_BtD, (key, value), cache.received_BS)
        layers.append(block.move(entering, before.layer(index), counts)[0])
    return MemoryState.of_layers(layers, counts)


def read(
    model: CompressiveTransformer, tokens_Bt: Tensor, segment: OpenSegment
) -> tuple[Tensor, OpenSegment]:
    """Read any number of tokens, closing and opening segments on the way.

    Returns the logits of every token, [B, t, V], and an open segment with room for at least one.
    """
    logits = []
    while tokens_Bt.shape[1]:
        room = model.config.segment - segment.length
        part, segment = extend(model, tokens_Bt[:, :room], segment)
        tokens_Bt = tokens_Bt[:, room:]
        logits.append(part)
        if segment.length == model.config.segment:
            segment = open_segment(model, close_segment(model, segment))
    return torch.cat(logits, dim=1), segment
