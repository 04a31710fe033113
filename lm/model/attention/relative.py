"""Relative attention with the authors' two position systems.

Shapes as in base.py; P sinusoids encode a distance, W rows in a table of encoded distances.

For query i and key j, with q already scaled by d ** -0.5 (paper, section 3; authors' code):

    score(i, j) = (q_i + u) . k_j + (q_i + v ) . r_{i-j}    j in memory or segment
    score(i, j) = (q_i + u) . k_j + (q_i + v') . r'_{i-j}   j in compressed memory

where r = W_r phi(i-j) and r' = W_r' phi(i-j) are separate projections of the sinusoids of the
distance. There are three ways to compute it, chosen by `RelativeAttention.route`.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm.model.attention.base import (
    MemoryAttention,
    Reading,
    Slots,
    distances,
    dropped_weights,
    joined,
    sinusoids,
)
from lm.model.attention.blocked import BlockedAttention
from lm.model.attention.decode import OpenKeys, Places, content_scores, products
from lm.model.attention.fused import WidePositions, attend_widened
from lm.model.attention.shift import Positions, attend, scores_by_key
from lm.model.components import Linear, LinearMap
from lm.model.model_config import ModelConfig

Route = Literal["blocked", "shift", "widened"]
FUSED_WIDTH = 256
"""Widest queries that fused attention kernels take."""


class RelativeAttention(MemoryAttention[Positions | WidePositions]):
    """Multi-head attention with relative positions."""

    def __init__(self, config: ModelConfig, pinned: int = 0) -> None:
        super().__init__(config, pinned)
        width, heads = self.query_width, config.heads
        self.position_key = Linear(config.encoded, width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, config.head_width))
        self.position_bias = nn.Parameter(torch.zeros(heads, config.head_width))
        if config.compressed:
            self.compressed_position_key = Linear(config.encoded, width, bias=False)
            self.compressed_position_bias = nn.Parameter(torch.zeros(heads, config.head_width))

    def route(self) -> Route:
        """How scores are computed where this module's weights are.

        The cache-blocked route is the fastest on a CPU. Elsewhere queries and keys are widened by
        the sinusoids, which fused kernels then read as ordinary attention, if these are few enough
        and nothing asks for what that route cannot give: the weights themselves, and dropout of
        single encoded distances.
        """
        config = self.config
        if self.content_bias.device.type == "cpu" and not torch.compiler.is_compiling():
            return "blocked"
        systems = 2 if config.compressed else 1
        dropout = self.training and config.dropout > 0
        fits = config.head_width + systems * config.encoded <= FUSED_WIDTH
        return "widened" if fits and not dropout and not self.counts_attention else "shift"

    def positions(self) -> Positions | WidePositions:
        """Biases [H, d], and projected position keys [H, W, d] or, widened, projections."""
        return self._wide_positions() if self.route() == "widened" else self.tables()

    def tables(self) -> Positions:
        """Biases [H, d] and projected position keys [H, W, d], whatever the route."""
        config, device = self.config, self.content_bias.device
        near = distances(config.memory, config.segment, device)
        memory_key = self._position_keys(self.position_key, near)
        if not config.compressed:
            return Positions(
                self.content_bias, self.position_bias, memory_key, None, None, self.pinned
            )
        far = distances(config.compressed, config.segment, device)
        return Positions(
            self.content_bias,
            self.position_bias,
            memory_key,
            self.compressed_position_bias,
            self._position_keys(self.compressed_position_key, far),
            self.pinned,
        )

    def _position_keys(self, projection: LinearMap, distances_W: Tensor) -> Tensor:
        encoded = sinusoids(distances_W, self.config.encoded, self.content_bias.dtype)
        encoded = F.dropout(encoded, self.config.dropout, self.training)
        keys_WD: Tensor = projection(encoded)
        return keys_WD.unflatten(-1, (self.config.heads, -1)).transpose(0, 1)

    def _wide_positions(self) -> WidePositions:
        def by_head(projection: LinearMap) -> Tensor:
            return projection.matrix().unflatten(0, (self.config.heads, -1))

        far = bool(self.config.compressed)
        return WidePositions(
            self.content_bias,
            self.position_bias,
            by_head(self.position_key),
            self.compressed_position_bias if far else None,
            by_head(self.compressed_position_key) if far else None,
            self.config.compressed,
            self.pinned,
        )

    def place(self, key_BHnd: Tensor, _: Positions | WidePositions, __: int) -> Tensor:
        """Keys as they are: positions come in with the queries."""
        return key_BHnd

    def lift(self, key_BHnd: Tensor, _: Positions | WidePositions, __: int) -> Tensor:
        """Keys as they are."""
        return key_BHnd

    def open_keys(self, key_BHtd: Tensor, _: Positions | WidePositions, __: Places) -> Tensor:
        """Keys as they are."""
        return key_BHtd

    def open_scores(
        self,
        query_BHtd: Tensor,
        keys: OpenKeys,
        tables: Positions | WidePositions,
        places: Places,
    ) -> Tensor:
        """See MemoryAttention.open_scores; tables are those of `tables`."""
        assert isinstance(tables, Positions)
        segment, compressed = self.config.segment, self.config.compressed
        content = content_scores(query_BHtd + tables.content_bias[:, None], keys, places.keys)
        near = products(query_BHtd + tables.memory_bias[:, None], tables.memory_key[None])
        near = scores_by_key(near, content.shape[-1] - compressed - self.pinned, segment, places)
        near = F.pad(near, (self.pinned, 0)) if self.pinned and not compressed else near
        if tables.compressed_key is None or tables.compressed_bias is None:
            return content + near
        far = products(query_BHtd + tables.compressed_bias[:, None], tables.compressed_key[None])
        far = scores_by_key(far, compressed, segment, places)
        far = F.pad(far, (self.pinned, 0)) if self.pinned else far
        return content + torch.cat([far, near], dim=-1)

    def read(
        self,
        query_BHTd: Tensor,
        slots: Sequence[Slots],
        positions: Positions | WidePositions,
        reading: Reading,
    ) -> tuple[Tensor, Tensor | None]:
        """See MemoryAttention.read."""
        if isinstance(positions, WidePositions):
            return attend_widened(query_BHTd, joined(slots), positions, reading), None
        if self.route() != "blocked":
            return attend(query_BHTd, joined(slots), positions, reading)
        keys, values = zip(*(part.for_heads(self.config.heads) for part in slots), strict=True)
        dropped = dropped_weights(query_BHTd, sum(part.number for part in slots), reading)
        read, received = BlockedAttention.apply(
            query_BHTd, *positions, reading.live_BN, dropped, reading.received, *keys, *values
        )
        return read, received
