"""Reading text a few tokens at a time, with the same results as whole segments.

Memory moves only when a segment is complete, so between two moves everything that memory
contributes to attention is constant. The open segment's keys, values and inputs have their room
from the beginning and are written in place, so a new token costs one row of attention however much
was read before. Every lane has a place of its own in its segment and moves its memory when its own
segment is complete: what a lane gives never depends on its neighbours.

Shapes as in attention/base.py; B lanes of text, t new tokens, n tokens that are there.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from lm.model.attention.base import Places, Slots, joined
from lm.model.components import wide
from lm.model.layer import Block, Entering
from lm.model.memory import MemoryState, advance_counts
from lm.model.open_segment import OpenLayer, Part
from lm.model.transformer import CompressiveTransformer


class Reader:
    """Lanes of text that are being read; each remembers what it has read, and nothing else.

    The reader owns its open segments and writes to them. Memory is a value as ever: reading on
    makes new memory, so copies of a reader share it until it moves.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: CompressiveTransformer,
        memory: MemoryState,
        forget: Callable[[MemoryState], MemoryState] | None = None,
    ) -> None:
        """Begin a segment after `memory`.

        Args:
            model: what reads.
            memory: what was read before.
            forget: what is left of memory after each segment; none: all.

        Raises:
            ValueError: the model is in training mode.
        """
        if model.training:
            raise ValueError("text is read in small parts by model.eval() only")
        self.model, self.blocks, self.forget = model, model.layers, forget
        self.tables = [block.attention.tables() for block in self.blocks]
        self.memory = model.readable(model.keep_keys(memory))
        """Of B' lanes, each for as many neighbouring lanes of text."""
        self.lengths = [0] * memory.lanes
        """Tokens that each lane has read of its open segment."""
        self.last_BD = model.embedding.weight.new_zeros(memory.lanes, model.config.width)
        """Final hidden state of the last token that each lane has read."""
        self.layers = [self._open_layer(index) for index in range(model.config.layers)]
        self._look()

    def _open_layer(self, index: int) -> OpenLayer:
        """An open segment without tokens."""
        attention, config = self.blocks[index].attention, self.blocks[index].config
        lanes, like, received = self.lanes, self.last_BD, None
        shape = (lanes, config.stored_heads, config.segment, config.head_width)
        if attention.counts_attention:
            slots = attention.before + config.segment
            received = like.new_zeros(lanes, slots, dtype=wide(like.dtype))
        return OpenLayer(
            self._memory_slots(index),
            Slots(like.new_zeros(shape), like.new_zeros(shape)),
            like.new_zeros(lanes, config.segment, config.width),
            received,
            self.blocks[index].levels(self.memory.layers[index], self.memory.counts),
        )

    def _memory_slots(self, index: int) -> Slots:
        """What a layer's memory is projected to, with placed keys."""
        block = self.blocks[index]
        key, value = joined(block.slots(self.memory.layers[index]))
        return Slots(block.attention.place(key, self.tables[index], slice(key.shape[2])), value)

    def _look(self) -> None:
        """Note which slots of memory are live, after it has moved."""
        self.live_BN = self.model.live(self.memory)
        self.full = bool(self.live_BN.all())

    @property
    def lanes(self) -> int:
        """Lanes of text B."""
        return len(self.lengths)

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Logits of what follows in each lane, [B, V]."""
        logits: Tensor = self.model.head(self.last_BD[:, None])[:, 0]
        return logits

    @torch.no_grad()
    def read(self, tokens_Bt: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """Read any number of tokens, moving memory on wherever a lane's segment is complete.

        Args:
            tokens_Bt: new tokens.
            counts: how many of them each lane reads, from the left; none: all.

        Returns:
            Final hidden states of the tokens, [B, t, D], for `model.head`; zero for those that
            their lane does not read.
        """
        lanes, most = tokens_Bt.shape
        counts = [most] * lanes if counts is None else list(counts)
        assert len(counts) == self.lanes == lanes
        assert max(counts) <= most
        done, segment = [0] * lanes, self.model.config.segment
        output = None
        while any(left := [count - d for count, d in zip(counts, done, strict=True)]):
            whole = [i for i in range(lanes) if not self.lengths[i] and left[i] >= segment]
            if whole:
                number = min(left[lane] // segment for lane in whole)
                taken = [number * segment if lane in whole else 0 for lane in range(lanes)]
                output = self._room(output, tokens_Bt)
                self._read_whole(whole, tokens_Bt, done, number, output)
            else:
                rooms = [segment - length for length in self.lengths]
                taken = list(map(min, rooms, left))
                part = self._part(tokens_Bt, done, taken)
                hidden = self._extend(part, taken)
                if part.rows is None and part.tokens_Bt.shape[1] == most:
                    return hidden
                output = self._room(output, tokens_Bt)
                part.place(hidden, done, output)
            done = [d + n for d, n in zip(done, taken, strict=True)]
        return self._room(output, tokens_Bt)

    def _room(self, output_BtD: Tensor | None, tokens_Bt: Tensor) -> Tensor:
        """Room for final hidden states, if there is none yet."""
        if output_BtD is not None:
            return output_BtD
        return self.last_BD.new_zeros(*tokens_Bt.shape, self.model.config.width)

    def _read_whole(
        self,
        lanes: list[int],
        tokens_Bt: Tensor,
        done: list[int],
        number: int,
        output_BtD: Tensor,
    ) -> None:
        """Some lanes read whole segments, as the model's forward does."""
        length, memory = self.model.config.segment, self._memory_of(lanes)
        for first in range(0, number * length, length):
            columns = [slice(done[lane] + first, done[lane] + first + length) for lane in lanes]
            tokens = [tokens_Bt[lane, part] for lane, part in zip(lanes, columns, strict=True)]
            hidden, memory, *_ = self.model.read_segment(torch.stack(tokens), memory)
            memory = memory if self.forget is None else self.forget(memory)
            for lane, part, states in zip(lanes, columns, hidden, strict=True):
                output_BtD[lane, part] = states
        self.last_BD = self._last(lanes, hidden[:, -1])
        self._remember(lanes, memory)

    def _last(self, lanes: list[int], states_nD: Tensor) -> Tensor:
        """Final hidden states of every lane's last token, with those of some lanes replaced."""
        if len(lanes) == self.lanes:
            return states_nD
        rows = torch.tensor(lanes, device=states_nD.device)
        return self.last_BD.index_copy(0, rows, states_nD)

    def _extend(self, part: Part, taken: list[int]) -> Tensor:
        """Lanes read tokens that fit into their open segments; their final hidden states."""
        hidden: Tensor = self.model.embedding(part.tokens_Bt)
        for index, block in enumerate(self.blocks):
            before = None if block.leaky is None else self._before(index)
            layer, tables = self.layers[index], self.tables[index]
            hidden = _read_layer(block, layer, tables, (hidden, before), part)
        hidden = self.model.norm(hidden)
        reading = [lane for lane, count in enumerate(taken) if count]
        if part.rows is None:
            self.last_BD = hidden[:, -1]
        else:
            ends = hidden[reading, [taken[lane] - 1 for lane in reading]]
            self.last_BD = self._last(reading, ends)
        self.lengths = [length + n for length, n in zip(self.lengths, taken, strict=True)]
        segment = self.model.config.segment
        if complete := [lane for lane, n in enumerate(self.lengths) if n == segment]:
            self._close(complete)
        return hidden

    def _before(self, index: int) -> Tensor | None:
        """What a layer stored of the last token that each lane read, [B, D]; see Block.newest."""
        block, inputs_BTD = self.blocks[index], self.layers[index].inputs_BTD
        newest_BD = block.newest(self.memory.layers[index], self.live_BN)
        if newest_BD is None:
            return None
        lengths = torch.tensor(self.lengths, device=newest_BD.device)
        rows = torch.arange(self.lanes, device=newest_BD.device)
        open_BD = inputs_BTD[rows, (lengths - 1).clamp(min=0)]
        newest_BD = newest_BD.repeat_interleave(self.lanes // newest_BD.shape[0], dim=0)
        return torch.where(lengths[:, None] > 0, open_BD, newest_BD)

    def _part(self, tokens_Bt: Tensor, done: list[int], taken: list[int]) -> Part:
        """The next tokens of each lane, and where they stand."""
        count, firsts = max(taken), self.lengths
        if min(taken) != count or len({*done}) > 1 or len({*firsts}) > 1:
            return self._ragged(tokens_Bt, done, taken)
        length, hidden = firsts[0] + count, None
        if not self.full or count > 1:
            place_t = torch.arange(firsts[0], length, device=tokens_Bt.device)
            hidden = self._hidden(place_t.expand(self.lanes, -1), length)
        places = Places(hidden, firsts[0])
        return Part(tokens_Bt[:, done[0] : done[0] + count], places, length, None)

    def _ragged(self, tokens_Bt: Tensor, done: list[int], taken: list[int]) -> Part:
        """The same where lanes stand at different places, or read different numbers of tokens."""
        device, count, firsts = tokens_Bt.device, max(taken), self.lengths
        rows = [(lane, column) for lane, n in enumerate(taken) for column in range(n)]
        places_n = [firsts[lane] + column for lane, column in rows]
        lanes_n, columns_n = torch.tensor(rows, device=device).T
        column_t = torch.arange(count, device=device)
        if any(done):
            source = torch.tensor(done, device=device)[:, None] + column_t
            tokens_Bt = tokens_Bt.gather(1, source.clamp(max=tokens_Bt.shape[1] - 1))
        length = max(places_n) + 1
        place_Bt = (torch.tensor(firsts, device=device)[:, None] + column_t).clamp(max=length - 1)
        dead = None
        if min(taken) < count:
            dead = column_t >= torch.tensor(taken, device=device)[:, None]
        first = firsts[0] if min(firsts) == max(firsts) else None
        places = Places(self._hidden(place_Bt, length), first, place_Bt, dead)
        here = lanes_n, columns_n, torch.tensor(places_n, device=device)
        return Part(tokens_Bt[:, :count], places, length, here)

    def _hidden(self, place_Bt: Tensor, length: int) -> Tensor:
        """Places.hidden_BtS of tokens at these places."""
        future = torch.arange(length, device=place_Bt.device) > place_Bt[:, :, None]
        shared = self.lanes // len(self.live_BN)
        empty = ~self.live_BN.repeat_interleave(shared, dim=0)[:, None]
        return torch.cat([empty.expand(-1, place_Bt.shape[1], -1), future], dim=-1)

    def _close(self, lanes: list[int]) -> None:
        """Move complete segments into memory, exactly as the model's forward does."""
        memory, layers = self._memory_of(lanes), []
        counts = advance_counts(self.model.config, memory, self.model.config.segment)
        rows: slice | list[int] = slice(None) if len(lanes) == self.lanes else lanes
        for index, (block, layer) in enumerate(zip(self.blocks, self.layers, strict=True)):
            some, own = layer.of_lanes(layer.memory, rows), slice(block.attention.before, None)
            key, value = some.segment
            key = block.attention.lift(key, self.tables[index], own)
            # Memory may take over what enters, and the next segment is written where this one is.
            inputs, rest = some.inputs_BTD.clone(), (some.received_BS, some.levels_BP)
            entering = Entering(inputs, Slots(key, value), *rest)
            layers.append(block.move(entering, memory.layers[index], counts)[0])
            if layer.received_BS is not None:
                layer.received_BS[rows] = 0.0
        for lane in lanes:
            self.lengths[lane] = 0
        after = MemoryState(tuple(layers), counts.after)
        self._remember(lanes, after if self.forget is None else self.forget(after))

    def _memory_of(self, lanes: list[int]) -> MemoryState:
        """Memory of some lanes of text, one lane each."""
        shared = self.lanes // self.memory.lanes
        if shared == 1 and len(lanes) == self.lanes:
            return self.memory
        sources = torch.tensor([lane // shared for lane in lanes], device=self.last_BD.device)
        return self.memory.lane_slice(sources)

    def _remember(self, lanes: list[int], memory: MemoryState) -> None:
        """Replace the memory of some lanes."""
        place = torch.tensor(lanes, device=self.last_BD.device)
        if len(lanes) == self.lanes:
            self.memory = memory
        else:
            self.memory = self._memory_of(list(range(self.lanes))).with_lanes(place, memory)
        for index, layer in enumerate(self.layers):
            layer.memory = self._memory_slots(index)
            levels = self.blocks[index].levels(memory.layers[index], memory.counts)
            if levels is not None and layer.levels_BP is not None:
                layer.levels_BP = layer.levels_BP.index_copy(0, place, levels)
        self._look()

    def select(self, lanes: Sequence[int]) -> "Reader":
        """A reader of some lanes, in any order and number; it and this one read on independently.

        Memory is shared where several take it from one lane and stand side by side.
        """
        shared = self.lanes // self.memory.lanes
        sources = [lane // shared for lane in lanes]
        run = next((i for i, source in enumerate(sources) if source != sources[0]), len(sources))
        if sources != [source for source in sources[::run] for _ in range(run)]:
            run = 1
        device = self.last_BD.device
        rows = torch.tensor(list(lanes), device=device)
        other = copy(self)
        if sources[::run] != list(range(self.memory.lanes)):
            other.memory = self.memory.lane_slice(torch.tensor(sources[::run], device=device))
        other.lengths = [self.lengths[lane] for lane in lanes]
        other.last_BD = self.last_BD[rows]
        other.layers = []
        for index, layer in enumerate(self.layers):
            same = other.memory is self.memory
            memory = layer.memory if same else other._memory_slots(index)
            other.layers.append(layer.of_lanes(memory, rows))
        other._look()
        return other

    def repeat(self, copies: int) -> "Reader":
        """Each lane `copies` times, side by side."""
        return self.select([lane for lane in range(self.lanes) for _ in range(copies)])


def _read_layer(
    block: Block, layer: OpenLayer, tables: Any, stream: tuple[Tensor, Tensor | None], part: Part
) -> Tensor:
    """One layer reads tokens of open segments and keeps what belongs to them.

    `stream` is the residual stream [B, t, D] and what Block.inputs goes on from.
    """
    hidden_BtD, _ = stream
    attention, inputs, places = block.attention, block.inputs(*stream), part.places
    query, key, value = attention.queries_keys_values(inputs)
    key = attention.place(key, tables, attention.slots_of(places, key.shape[2]))
    rooms = (layer.segment.key_BKnd, layer.segment.value_BKnd, layer.inputs_BTD)
    for values, room, dimension in zip((key, value, inputs), rooms, (2, 2, 1), strict=True):
        if part.rows is None:
            number = values.shape[dimension]
            room.narrow(dimension, part.length - number, number).copy_(values)
        else:
            part.scatter(values, room, dimension)
    segment, counts = layer.segment.narrow(0, part.length), layer.received_BS is not None
    parts = [layer.memory, segment] if layer.memory.number else [segment]
    read, received = attention.attend(query, parts, tables, places, received=counts)
    if layer.received_BS is not None and received is not None:
        layer.received_BS[:, : received.shape[1]] += received
    output, levels = block.filtered(attention.join_heads(read), inputs, layer.levels_BP)
    if levels is not None and layer.levels_BP is not None:
        layer.levels_BP = part.newest(levels, layer.levels_BP)
    return block.after_attention(hidden_BtD, output)
