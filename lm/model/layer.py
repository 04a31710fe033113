"""One layer: attention over memory, feed-forward, and the layer's own compression.

Shapes as in attention/base.py.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm.model.attention.base import Attended, MemoryAttention, Slots, section
from lm.model.attention.relative import RelativeAttention
from lm.model.attention.rotary import RotaryAttention
from lm.model.components import FeedForward, LeakyAverage, make_norm, total_penalty
from lm.model.compression import (
    COMPRESSIONS,
    Decoder,
    Evicted,
    Reconstruction,
    attention_reconstruction,
    auto_encoding,
)
from lm.model.filters import FilterBank
from lm.model.gates import GATES
from lm.model.memory import Counts, LayerMemory, evict, live_mask, push, queue
from lm.model.model_config import ModelConfig
from lm.model.pinned import PinnedMemory, pinned_memories


class LayerStep(NamedTuple):
    """What a layer returns for one segment."""

    hidden_BTD: Tensor
    memory: LayerMemory
    reconstruction: Reconstruction | None
    penalty: Tensor | None
    """What the layer's linear maps add to the loss."""


class Entering(NamedTuple):
    """A segment that is to enter memory."""

    inputs_BTD: Tensor
    """What is stored."""
    slots: Slots
    """What it is projected to."""
    received_BS: Tensor | None
    """Attention that each slot and token received from it, if compression asks for it."""
    levels_BP: Tensor | None
    """What the filters hold after it, if there are any."""


class Compressed(NamedTuple):
    """A block that left memory and what it was compressed to."""

    old_BnD: Tensor
    new_BwD: Tensor


class Block(nn.Module):
    """A layer with memory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = make_norm(config)
        self.leaky = LeakyAverage(config.width) if config.leaky_inputs else None
        self.filters = FilterBank(config) if config.filters else None
        self.pinned = nn.ModuleList(pinned_memories(config))
        pinned = sum(part.number for part in self.pinned_memories)
        self.attention: MemoryAttention[Any]
        if config.positions == "relative":
            self.attention = RelativeAttention(config, pinned)
        else:
            self.attention = RotaryAttention(config, pinned)
        self.feedforward_norm = make_norm(config)
        self.feedforward = FeedForward(config)
        self.attention_gate = GATES[config.gate](config.width)
        self.feedforward_gate = GATES[config.gate](config.width)
        if config.compressed:
            self.compression = COMPRESSIONS[config.compression](config)
            if config.reconstruction == "auto_encoding":
                self.decoder = Decoder(config)

    @property
    def pinned_memories(self) -> list[PinnedMemory]:
        """The kinds of memory beside the two, farthest first."""
        return [part for part in self.pinned if isinstance(part, PinnedMemory)]

    def empty(self, memory: LayerMemory) -> LayerMemory:
        """What lanes that have read nothing keep in this layer.

        Args:
            memory: both memories of the lanes.
        """
        kept = dict(memory)
        like_BD = memory["memory"].new_empty(len(memory["memory"]), self.config.width)
        for part in self.pinned_memories:
            kept |= part.init(like_BD)
        return kept if self.filters is None else kept | self.filters.init(like_BD)

    @property
    def counts_read(self) -> bool:
        """Whether something in this layer asks for the tokens that a lane has read."""
        return self.filters is not None or len(self.pinned) > 0

    def forward(
        self,
        hidden_BTD: Tensor,
        memory: LayerMemory,
        live_BN: Tensor,
        counts: Counts,
        losses: bool,
    ) -> LayerStep:
        """Read memory, transform the segment, and move the segment into memory.

        Args:
            hidden_BTD: the residual stream.
            memory: this layer's memory before the segment.
            live_BN: live slots of [pinned ; compressed ; memory] of layers with memory.
            counts: how the live counts move with this segment.
            losses: whether the reconstruction loss is computed; of compression without one, outside
                of training, that of attention, to be looked at.
        """
        live = self.live(live_BN)
        inputs = self.inputs(hidden_BTD, self.newest(memory, live))
        attended = self.attention(inputs, self.slots(memory), live)
        before = self.levels(memory, counts.before)
        output, levels = self.filtered(attended.output_BTD, inputs, before, counts.hidden_B)
        hidden = self.after_attention(hidden_BTD, output)
        last = None if levels is None else levels[:, -1]
        entering = Entering(inputs, attended.slots[-1], attended.received_BS, last)
        after, block = self.move(entering, memory, counts)
        loss = None
        trained = self.config.reconstruction != "none" or not self.training
        if block is not None and losses and trained:
            loss = self._reconstruction(block, counts, attended)
        penalty = total_penalty(self) if self.training else None
        return LayerStep(hidden, after, loss, penalty)

    def slots(self, memory: LayerMemory) -> list[Slots]:
        """What [pinned ; compressed ; memory] is projected to, in parts."""
        lanes = len(memory["memory"])
        pinned = [part.read(memory, lanes) for part in self.pinned_memories]
        if not pinned:
            return self.stored_slots(memory)
        return [*self.attention.project(*pinned), *self.stored_slots(memory)]

    def stored_slots(self, memory: LayerMemory) -> list[Slots]:
        """What [compressed ; memory] is projected to, in parts."""
        if "keys" in memory:
            return [Slots(memory["keys"], memory["values"])]
        stored = (memory["compressed"], memory["memory"])
        return self.attention.project(*stored[0 if self.config.compressed else 1 :])

    def live(self, live_BN: Tensor) -> Tensor:
        """Of the slots of layers with memory, those that this layer has: all or none."""
        return live_BN[:, live_BN.shape[1] - self.attention.before :]

    def newest(self, memory: LayerMemory, live_BN: Tensor) -> Tensor | None:
        """The newest slot of memory, [B, D], zero where nothing was read; none unless inputs of
        attention go on from it.
        """
        if self.leaky is None:
            return None
        return torch.where(live_BN[:, -1:], memory["memory"][:, -1].detach(), 0.0)

    def inputs(self, hidden_BTD: Tensor, before_BD: Tensor | None = None) -> Tensor:
        """What attention reads of the segment, and what enters memory.

        Args:
            hidden_BTD: the residual stream.
            before_BD: the inputs of the token before, or `newest`; only leaky inputs read it.
        """
        normed: Tensor = (
            self.attention_norm(hidden_BTD) if self.config.norm == "pre" else hidden_BTD
        )
        if self.leaky is None:
            return normed
        assert before_BD is not None
        averaged: Tensor = self.leaky(normed, before_BD)
        return averaged

    def levels(self, memory: LayerMemory, counts: Mapping[str, Tensor]) -> Tensor | None:
        """What the filters hold before a segment, [B, P], if there are any."""
        if self.filters is None:
            return None
        return self.filters.before(memory, counts["read"])

    def filtered(
        self,
        attention_BTD: Tensor,
        inputs_BTD: Tensor,
        before_BP: Tensor | None,
        hidden_B: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention with what the filters add to it, and what they hold after each token.

        Args:
            attention_BTD: what attention gives.
            inputs_BTD: its inputs, which the filters read too.
            before_BP: what the filters hold before them; see `levels`.
            hidden_B: lanes in which that is not read; none: no lane.
        """
        if self.filters is None:
            return attention_BTD, None
        assert before_BP is not None
        read_BTD, levels_BTP = self.filters(inputs_BTD, before_BP, hidden_B)
        return attention_BTD + read_BTD, levels_BTP

    def after_attention(self, hidden_BTD: Tensor, attention_BTD: Tensor) -> Tensor:
        """Join attention to the stream, and the feed-forward after it."""
        joined = self.attention_gate(hidden_BTD, self._dropped(attention_BTD))
        post = self.config.norm == "post"
        inputs = self.attention_norm(joined) if post else self.feedforward_norm(joined)
        outer = self._dropped(self.feedforward(inputs))
        hidden: Tensor = self.feedforward_gate(inputs if post else joined, outer)
        return self.feedforward_norm(hidden) if post else hidden

    def _dropped(self, x_BTD: Tensor) -> Tensor:
        """After dropout, in training."""
        if not self.training or not self.config.dropout:
            return x_BTD
        return F.dropout(x_BTD, self.config.dropout)

    def move(
        self, entering: Entering, memory: LayerMemory, counts: Counts
    ) -> tuple[LayerMemory, Compressed | None]:
        """Commit a segment to memory and compress what falls out.

        Args:
            entering: the segment.
            memory: this layer's memory before the segment.
            counts: how the live counts move with this segment.

        Returns:
            Memory afterwards, and the block that was compressed, if any.
        """
        config = self.config
        old, live, recent = evict(config, memory["memory"], entering.inputs_BTD, counts.evicted)
        compressed, block, new_kept = memory["compressed"], None, None
        if config.compressed:
            received = entering.received_BS
            if received is not None:
                received = received[:, self.attention.pinned :]
            used = None if received is None else average_use(config, received)
            new = self.compression(Evicted(old, live, used, compressed[:, -1], counts.begun))
            compressed, block = push(compressed, new), Compressed(old, new)
            new_kept = self.attention.project(new)[0] if "keys" in memory else None
        after = {"memory": recent, "compressed": compressed}
        if "keys" in memory:
            after |= self._move_kept(memory, entering.slots, new_kept)
        for part in self.pinned_memories:
            after |= part.commit(memory, counts.before, entering.inputs_BTD.detach())
        if entering.levels_BP is not None:
            # Of its own, lest all levels of the segment be kept.
            after["filters"] = entering.levels_BP.detach().clone()
        return after, block

    def _move_kept(
        self, memory: LayerMemory, tokens: Slots, new: Slots | None
    ) -> dict[str, Tensor]:
        """Kept keys and values take the way of the slots that they belong to."""
        moved = {}
        for index, name in enumerate(("keys", "values")):
            far, near = memory[name].split([self.config.compressed, self.config.memory], dim=2)
            old = [far] if new is None else queue(far, new[index])
            moved[name] = torch.cat([*old, *queue(near, tokens[index])], dim=2)
        return moved

    def _reconstruction(
        self, block: Compressed, counts: Counts, attended: Attended
    ) -> Reconstruction:
        """How far this layer's compression is from what it stands for."""
        config = self.config
        if config.reconstruction == "auto_encoding":
            old = block.old_BnD[:, : config.windows * config.rate]
            return auto_encoding(
                old, self.decoder(block.new_BwD), live_mask(counts.evicted, old.shape[1])
            )
        tokens, first = config.segment, self.attention.pinned + config.compressed
        leaving = section(attended.slots, first, first + tokens).for_heads(config.heads)
        (new,) = self.attention.project(block.new_BwD, detached=True)
        new = new.for_heads(config.heads)
        return attention_reconstruction(
            attended.query_BHTd[:, :, tokens - config.reconstructing :],
            (*leaving, live_mask(counts.evicted, tokens)),
            (*new, live_mask(counts.new_compressed, config.windows)),
        )


def average_use(config: ModelConfig, received_BS: Tensor) -> Tensor:
    """Average attention [B, w c] that each slot of the evicted block received, over heads and the
    queries that can see it; `received_BS` has the sums.
    """
    tokens, first = config.segment, config.compressed
    received = received_BS[:, first : first + tokens]
    # The block begins in memory, which every query sees; a token is seen from its own place on.
    place = torch.arange(tokens, device=received.device) - config.memory
    average = received / (config.heads * (tokens - place.clamp(min=0)))
    return F.pad(average, (config.windows * config.rate - tokens, 0))
