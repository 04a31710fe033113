"""Attention over [compressed ; memory ; segment]: what every scheme of positions shares.

Shapes: B lanes, T queries, C compressed slots, M memory slots, N = C + M, S = N + segment tokens,
H heads, d dimensions of a head, D = H d width.
"""

from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lm.model.compression import USES_ATTENTION
from lm.model.config import ModelConfig
from lm.model.linear import Linear
from lm.model.open_attention import OpenKeys, Places

PositionsT = TypeVar("PositionsT")


class Attended(NamedTuple):
    """What one attention call computed, for the reconstruction loss and for caches."""

    output_BTD: Tensor
    query_BHTd: Tensor
    key_BHSd: Tensor
    """Keys as projected, without their positions."""
    value_BHSd: Tensor
    received_BS: Tensor | None
    """Attention that each key received, summed over heads and queries, if compression asks."""


class Reading(NamedTuple):
    """How a segment, or part of it, is read."""

    live_BN: Tensor
    """Which slots of [compressed ; memory] may be seen."""
    first: int = 0
    """Place of the first query in the segment."""
    dropout: float = 0.0
    """Share of the attention weights that is dropped."""
    received: bool = False
    """Whether the attention that each key receives is wanted."""


def visible(reading: Reading, queries: int) -> Tensor:
    """[B, 1, T, N + first + T] bool: live slots, and the segment up to the query itself."""
    live_BN, first = reading.live_BN, reading.first
    lanes, slots = live_BN.shape
    causal = torch.ones(queries, first + queries, dtype=torch.bool, device=live_BN.device)
    causal = causal.tril(first).expand(lanes, queries, -1)
    memory = live_BN[:, None, :].expand(lanes, queries, slots)
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

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.counts_attention = config.compressed > 0 and config.compression in USES_ATTENTION
        self.query_key_value = Linear(config.width, 3 * config.width, bias=False)
        self.output = Linear(config.width, config.width, bias=False)

    def positions(self) -> PositionsT:
        """What `read` needs to know of the positions of a whole segment."""
        raise NotImplementedError

    def place(self, key_BHnd: Tensor, positions: PositionsT, first: int) -> Tensor:
        """Keys of n slots, from slot `first` of [compressed ; memory ; segment] on, as `read` wants
        them.
        """
        raise NotImplementedError

    def lift(self, key_BHnd: Tensor, positions: PositionsT, first: int) -> Tensor:
        """The inverse of `place`."""
        raise NotImplementedError

    def read(
        self,
        query_BHTd: Tensor,
        key_BHSd: Tensor,
        value_BHSd: Tensor,
        positions: PositionsT,
        reading: Reading,
    ) -> tuple[Tensor, Tensor | None]:
        """What queries first .. first + T - 1 of the segment read, [B, H, T, d], and the attention
        [B, S] that keys received, if it is wanted.

        Args:
            query_BHTd: scaled queries.
            key_BHSd: placed keys of [compressed ; memory ; segment up to the last query].
            value_BHSd: their values.
            positions: of the whole segment.
            reading: which part of the segment this is, and how it is read.
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

    def reading(self, live_BN: Tensor, first: int = 0) -> Reading:
        """How queries from place `first` of the segment on are read in the present mode."""
        dropout = self.config.attention_dropout if self.training else 0.0
        return Reading(live_BN, first, dropout, self.counts_attention)

    def forward(
        self, inputs_BTD: Tensor, key_BHNd: Tensor, value_BHNd: Tensor, live_BN: Tensor
    ) -> Attended:
        """Attend from a whole segment over memory and itself.

        Args:
            inputs_BTD: inputs of the segment.
            key_BHNd: keys of [compressed ; memory], without positions.
            value_BHNd: their values.
            live_BN: which slots of memory may be seen.
        """
        query, key, value = self.queries_keys_values(inputs_BTD)
        key = torch.cat([key_BHNd, key], dim=2)
        value = torch.cat([value_BHNd, value], dim=2)
        positions = self.positions()
        placed = self.place(key, positions, 0)
        read, received = self.read(query, placed, value, positions, self.reading(live_BN))
        return Attended(self.join_heads(read), query, key, value, received)

    def split_heads(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, d]."""
        return x_BTD.unflatten(-1, (self.config.heads, -1)).transpose(1, 2)

    def join_heads(self, read_BHTd: Tensor) -> Tensor:
        """Mix what the heads read: [B, H, T, d] -> [B, T, D]."""
        mixed: Tensor = self.output(read_BHTd.transpose(1, 2).flatten(2))
        return mixed

    def keys_values(self, slots_BND: Tensor, detached: bool = False) -> tuple[Tensor, Tensor]:
        """Project slots (already layer-normed when stored) to keys and values [B, H, N, d]."""
        projected = self.query_key_value.rows(slots_BND, self.config.width, constant=detached)
        key, value = projected.chunk(2, dim=-1)
        return self.split_heads(key), self.split_heads(value)

    def queries_keys_values(self, inputs_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values of the segment, each [B, H, T, d]."""
        query, key, value = self.query_key_value(inputs_BTD).chunk(3, dim=-1)
        scaled = query * self.config.head_width**-0.5
        return self.split_heads(scaled), self.split_heads(key), self.split_heads(value)
