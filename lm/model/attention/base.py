"""Attention over [pinned ; compressed ; memory ; segment]: what every scheme of positions shares.

Shapes: B lanes, T queries, k pinned slots (pinned.py), C compressed slots, M memory slots,
N = k + C + M, S = N + segment tokens, H heads of queries, K of keys and values, d dimensions of a
head, D width.
"""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm.model.attention.decode import OpenKeys, Places
from lm.model.components import Linear
from lm.model.compression import USES_ATTENTION
from lm.model.model_config import ModelConfig


def sinusoids(distances_W: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Encode distances in tokens or slots: all sines, then all cosines, shape [W, width].

    Angles are formed in float64, so that long distances keep their phase in every dtype.
    """
    device = distances_W.device
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float64) / width
    angles = distances_W.to(torch.float64)[:, None] * 10000.0**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)


def distances(slots: int, segment: int, device: torch.device) -> Tensor:
    """Distances from far to near between the tokens of a segment and slots that lie directly before
    it or in it: slots + segment - 1 down to 0, [slots + segment].

    Compressed slots count one each and lie directly before the segment too, as in the authors'
    code. Their nearest distance is 1; with a row for 0, which nothing reads, usual tables have an
    even size, and products of odd size are slow.
    """
    return torch.arange(slots + segment - 1, -1, -1, device=device)


class Slots(NamedTuple):
    """Neighbouring slots as attention sees them."""

    key_BHnd: Tensor
    """Keys without their positions."""
    value_BHnd: Tensor

    @property
    def number(self) -> int:
        """Number of slots n."""
        return self.key_BHnd.shape[2]

    def for_heads(self, heads: int) -> "Slots":
        """The same for so many heads of queries: key-value heads repeated, side by side."""
        stored = self.key_BHnd.shape[1]
        if stored == heads:
            return self
        shared = heads // stored
        return Slots(*(x.repeat_interleave(shared, dim=1) for x in self))

    def narrow(self, first: int, stop: int) -> "Slots":
        """Some of them, as views."""
        return Slots(self.key_BHnd[:, :, first:stop], self.value_BHnd[:, :, first:stop])


def joined(parts: Sequence[Slots]) -> Slots:
    """All parts as one."""
    if len(parts) == 1:
        return parts[0]
    keys, values = zip(*parts, strict=True)
    return Slots(torch.cat(keys, dim=2), torch.cat(values, dim=2))


def section(parts: Sequence[Slots], first: int, stop: int) -> Slots:
    """Slots `first` to `stop` of all, which are views if they lie in one part."""
    inside = []
    for part in parts:
        begin, end = max(first, 0), min(stop, part.number)
        if begin < end:
            inside.append(part.narrow(begin, end))
        first, stop = first - part.number, stop - part.number
    return joined(inside)


PositionsT = TypeVar("PositionsT")


class Attended(NamedTuple):
    """What one attention call computed, for the reconstruction loss and for caches."""

    output_BTD: Tensor
    query_BHTd: Tensor
    slots: tuple[Slots, ...]
    """What was read, in parts, oldest first; the last is the segment."""
    received_BS: Tensor | None
    """Attention that each key received, summed over heads and queries, if compression asks."""


class Reading(NamedTuple):
    """How a segment is read."""

    live_BN: Tensor
    """Which slots of [pinned ; compressed ; memory] may be seen."""
    dropout: float = 0.0
    """Share of the attention weights that is dropped."""
    received: bool = False
    """Whether the attention that each key receives is wanted."""


def visible(reading: Reading, queries: int) -> Tensor:
    """[B, 1, T, N + T] bool: live slots, and the segment up to the query itself."""
    lanes, slots = reading.live_BN.shape
    causal = torch.ones(queries, queries, dtype=torch.bool, device=reading.live_BN.device)
    causal = causal.tril().expand(lanes, queries, -1)
    memory = reading.live_BN[:, None, :].expand(lanes, queries, slots)
    return torch.cat([memory, causal], dim=-1)[:, None]


def dropped_weights(query_BHTd: Tensor, keys: int, reading: Reading) -> Tensor | None:
    """Random factors 0 or 1 / (1 - dropout) of the attention weights, [B, H, T, S]."""
    if reading.dropout == 0:
        return None
    kept = query_BHTd.new_empty(*query_BHTd.shape[:3], keys).bernoulli_(1 - reading.dropout)
    return kept.div_(1 - reading.dropout)


class MemoryAttention(nn.Module, Generic[PositionsT]):
    """Multi-head attention of a segment over both memories and itself.

    A subclass knows its positions: how they are prepared for a segment, what they do to keys, and
    what queries read with them.
    """

    def __init__(self, config: ModelConfig, pinned: int = 0) -> None:
        """pinned: number of pinned slots k."""
        super().__init__()
        self.config, self.pinned = config, pinned
        self.counts_attention = config.compressed > 0 and config.compression in USES_ATTENTION
        self.query_width = config.heads * config.head_width
        stored, bias = config.stored_heads * config.head_width, config.attention_bias
        self.query_key_value = Linear(
            config.width, self.query_width + 2 * stored, bias=bias != "none"
        )
        self.output = Linear(self.query_width, config.width, bias=bias == "all")
        if config.query_key_norm:
            self.query_norm = nn.RMSNorm(config.head_width, config.norm_epsilon)
            self.key_norm = nn.RMSNorm(config.head_width, config.norm_epsilon)

    def positions(self) -> PositionsT:
        """What `read` needs to know of the positions of a whole segment."""
        raise NotImplementedError

    def place(self, key_BHnd: Tensor, positions: PositionsT, first: int) -> Tensor:
        """Keys of n slots, from slot `first` of [pinned ; compressed ; memory ; segment] on, with
        their positions.
        """
        raise NotImplementedError

    def lift(self, key_BHnd: Tensor, positions: PositionsT, first: int) -> Tensor:
        """The inverse of `place`."""
        raise NotImplementedError

    def read(
        self,
        query_BHTd: Tensor,
        slots: Sequence[Slots],
        positions: PositionsT,
        reading: Reading,
    ) -> tuple[Tensor, Tensor | None]:
        """What the queries of a segment read, [B, H, T, d], and the attention [B, S] that slots
        received, if it is wanted.

        Args:
            query_BHTd: scaled queries.
            slots: parts of [pinned ; compressed ; memory ; segment].
            positions: of the segment.
            reading: how it is read.
        """
        raise NotImplementedError

    def tables(self) -> PositionsT:
        """What `open_keys` and `open_scores` need to know of the positions of a whole segment; it
        depends on weights and lengths alone.
        """
        return self.positions()

    def open_keys(self, key_BHtd: Tensor, tables: PositionsT, places: Places) -> Tensor:
        """Keys of new tokens of an open segment, as `place` makes them."""
        raise NotImplementedError

    def open_scores(
        self, query_BHtd: Tensor, keys: OpenKeys, tables: PositionsT, places: Places
    ) -> Tensor:
        """Scores of new tokens of an open segment, [B, H, t, S]; none is hidden yet."""
        raise NotImplementedError

    def forward(self, inputs_BTD: Tensor, memory: Sequence[Slots], live_BN: Tensor) -> Attended:
        """Attend from a whole segment over memory and itself.

        Args:
            inputs_BTD: inputs of the segment.
            memory: parts of [pinned ; compressed ; memory].
            live_BN: which slots of memory may be seen.
        """
        query, key, value = self.queries_keys_values(inputs_BTD)
        slots = (*memory, Slots(key, value))
        dropout = self.config.attention_dropout if self.training else 0.0
        reading = Reading(live_BN, dropout, self.counts_attention)
        read, received = self.read(query, slots, self.positions(), reading)
        return Attended(self.join_heads(read), query, slots, received)

    def split_heads(self, x_BTh: Tensor) -> Tensor:
        """[B, T, H d] -> [B, H, T, d], for any number of heads."""
        return x_BTh.unflatten(-1, (-1, self.config.head_width)).transpose(1, 2)

    def join_heads(self, read_BHTd: Tensor) -> Tensor:
        """Mix what the heads read: [B, H, T, d] -> [B, T, D]."""
        mixed: Tensor = self.output(read_BHTd.transpose(1, 2).flatten(2))
        return mixed

    def project(self, *stored_BnD: Tensor, detached: bool = False) -> list[Slots]:
        """Project parts of memory (already layer-normed when stored) to keys and values.

        Args:
            stored_BnD: the parts.
            detached: let no gradient reach the weights.
        """
        first, bias = self.query_width, self.query_key_value.bias
        projected = self.query_key_value.rows(stored_BnD, first, constant=detached)
        if bias is not None:
            added = bias[first:].detach() if detached else bias[first:]
            projected = [both + added for both in projected]
        parts = [map(self.split_heads, both.chunk(2, dim=-1)) for both in projected]
        return [Slots(self.normed_keys(key, detached), value) for key, value in parts]

    def normed_keys(self, key_BHnd: Tensor, detached: bool = False) -> Tensor:
        """Keys after their norm, if they have one."""
        if not self.config.query_key_norm:
            return key_BHnd
        norm = self.key_norm
        gain = norm.weight.detach() if detached else norm.weight
        return F.rms_norm(key_BHnd, norm.normalized_shape, gain, norm.eps)

    def queries_keys_values(self, inputs_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries [B, H, T, d], keys and values [B, K, T, d] of the segment."""
        queries = self.query_width
        joined = self.query_key_value(inputs_BTD)
        stored = (joined.shape[-1] - queries) // 2
        query, key, value = joined.split([queries, stored, stored], dim=-1)
        scale = self.config.head_width**-0.5
        key_BHTd, value_BHTd = self.split_heads(key), self.split_heads(value)
        if self.config.query_key_norm:
            normed = self.query_norm(self.split_heads(query)) * scale
            return normed, self.normed_keys(key_BHTd), value_BHTd
        return self.split_heads(query * scale), key_BHTd, value_BHTd
