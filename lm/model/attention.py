"""Relative attention over [compressed ; memory ; segment] with the authors' two position systems.

Shapes: B lanes, T queries, C compressed slots, M memory slots, N = C + M, S = N + segment tokens,
H heads, d dimensions of a head, D = H d width, W rows of a table of encoded distances.

For query i and key j, with q already scaled by d ** -0.5 (paper, section 3; authors' code):

    score(i, j) = (q_i + u) . k_j + (q_i + v ) . r_{i-j}    j in memory or segment
    score(i, j) = (q_i + u) . k_j + (q_i + v') . r'_{i-j}   j in compressed memory

where r and r' are separate projections of the sinusoids of the distance.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm.model.blocked_attention import BlockedAttention
from lm.model.compression import USES_ATTENTION
from lm.model.config import ModelConfig
from lm.model.positions import compressed_distances, memory_distances, sinusoids
from lm.model.relative import Positions, Reading, attend


class Attended(NamedTuple):
    """What one attention call computed, for the reconstruction loss and for caches."""

    output_BTD: Tensor
    query_BHTd: Tensor
    key_BHSd: Tensor
    value_BHSd: Tensor
    received_BS: Tensor | None
    """Attention that each key received, summed over heads and queries, if compression asks."""


class RelativeAttention(nn.Module):
    """Multi-head attention of a segment over both memories and itself."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.counts_attention = config.compressed > 0 and config.compression in USES_ATTENTION
        width, heads = config.width, config.heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.position_key = nn.Linear(width, width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, config.head_width))
        self.position_bias = nn.Parameter(torch.zeros(heads, config.head_width))
        if config.compressed:
            self.compressed_position_key = nn.Linear(width, width, bias=False)
            self.compressed_position_bias = nn.Parameter(torch.zeros(heads, config.head_width))

    def split_heads(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, H, T, d]."""
        return x_BTD.unflatten(-1, (self.config.heads, -1)).transpose(1, 2)

    def keys_values(self, slots_BND: Tensor, detached: bool = False) -> tuple[Tensor, Tensor]:
        """Project slots (already layer-normed when stored) to keys and values [B, H, N, d]."""
        weight = self.query_key_value.weight[self.config.width :]
        projected = F.linear(slots_BND, weight.detach() if detached else weight)
        key, value = projected.chunk(2, dim=-1)
        return self.split_heads(key), self.split_heads(value)

    def queries_keys_values(self, inputs_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled queries, keys and values of the segment, each [B, H, T, d]."""
        query, key, value = self.query_key_value(inputs_BTD).chunk(3, dim=-1)
        scaled = query * self.config.head_width**-0.5
        return self.split_heads(scaled), self.split_heads(key), self.split_heads(value)

    def positions(self) -> Positions:
        """Projected position keys [H, W, d] and biases [H, d] for a whole segment of queries."""
        config, device = self.config, self.position_key.weight.device
        near = memory_distances(config.memory, config.segment, device)
        memory_key = self._position_keys(self.position_key, near)
        if not config.compressed:
            return Positions(self.content_bias, self.position_bias, memory_key, None, None)
        far = compressed_distances(config.compressed, config.segment, device)
        return Positions(
            self.content_bias,
            self.position_bias,
            memory_key,
            self.compressed_position_bias,
            self._position_keys(self.compressed_position_key, far),
        )

    def _position_keys(self, projection: nn.Linear, distances_W: Tensor) -> Tensor:
        encoded = sinusoids(distances_W, self.config.width, projection.weight.dtype)
        encoded = F.dropout(encoded, self.config.dropout, self.training)
        keys_WD: Tensor = projection(encoded)
        return keys_WD.unflatten(-1, (self.config.heads, -1)).transpose(0, 1)

    def forward(self, inputs_BTD: Tensor, slots_BND: Tensor, live_BN: Tensor) -> Attended:
        """Attend from a whole segment over memory and itself.

        Args:
            inputs_BTD: layer-normed inputs of the segment.
            slots_BND: [compressed ; memory] as stored.
            live_BN: which slots may be seen.
        """
        query, key, value = self.queries_keys_values(inputs_BTD)
        memory_key, memory_value = self.keys_values(slots_BND)
        key = torch.cat([memory_key, key], dim=2)
        value = torch.cat([memory_value, value], dim=2)
        read, received = self.read(query, key, value, self.positions(), live_BN)
        return Attended(self.join_heads(read), query, key, value, received)

    def read(
        self,
        query_BHTd: Tensor,
        key_BHSd: Tensor,
        value_BHSd: Tensor,
        positions: Positions,
        live_BN: Tensor,
        first: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """What queries first .. first + T - 1 of the segment read, [B, H, T, d], and the attention
        [B, S] that keys received if compression asks for it.

        Args:
            query_BHTd: scaled queries.
            key_BHSd: keys of [compressed ; memory ; segment up to the last query].
            value_BHSd: their values.
            positions: of the whole segment.
            live_BN: which slots of memory may be seen.
            first: place of the first query in the segment.
        """
        queries, wanted = query_BHTd.shape[2], self.counts_attention
        dropped = self._dropped_weights(query_BHTd, key_BHSd.shape[2])
        if on_cpu(query_BHTd) and queries == self.config.segment:
            read, received = BlockedAttention.apply(
                query_BHTd, key_BHSd, value_BHSd, *positions, live_BN, dropped, wanted
            )
            return read, received
        window = positions.window(first, queries, self.config.segment)
        reading = Reading(live_BN, first, dropped, wanted)
        return attend(query_BHTd, key_BHSd, value_BHSd, window, reading)

    def _dropped_weights(self, query_BHTd: Tensor, keys: int) -> Tensor | None:
        """Factors 0 or 1 / (1 - p) of the attention weights, [B, H, T, S], in training."""
        share = self.config.attention_dropout
        if share == 0 or not self.training:
            return None
        kept = query_BHTd.new_empty(*query_BHTd.shape[:3], keys).bernoulli_(1 - share)
        return kept.div_(1 - share)

    def join_heads(self, read_BHTd: Tensor) -> Tensor:
        """Mix what the heads read: [B, H, T, d] -> [B, T, D]."""
        mixed: Tensor = self.output(read_BHTd.transpose(1, 2).flatten(2))
        return mixed


def on_cpu(tensor: Tensor) -> bool:
    """Whether the cache-blocked route suits a tensor's device."""
    return tensor.device.type == "cpu"
