"""Relative attention with the authors' two position systems.

Shapes as in base.py; P sinusoids encode a distance, W rows in a table of encoded distances.

For query i and key j, with q already scaled by d ** -0.5 (paper, section 3; authors' code):

    score(i, j) = (q_i + u) . k_j + (q_i + v ) . r_{i-j}    j in memory or segment
    score(i, j) = (q_i + u) . k_j + (q_i + v') . r'_{i-j}   j in compressed memory

where r = W_r phi(i-j) and r' = W_r' phi(i-j) are separate projections of the sinusoids of the
distance. `RelativeAttention.backend` says which of three ways computes it; docs/speed.md what each
is worth.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm.model.attention.base import (
    MemoryAttention,
    Places,
    Reading,
    Slots,
    content_scores,
    dropped_weights,
    joined,
    sinusoids,
    visible,
)
from lm.model.attention.blocked import BlockedAttention
from lm.model.attention.fused import System, attend_widened
from lm.model.components import Linear, LinearMap, matrix_of
from lm.model.model_config import FUSED_WIDTH, Backend, ModelConfig


class Tables(NamedTuple):
    """Everything that scores need to know of positions."""

    content_bias: Tensor
    """u, [H, d]"""
    memory_bias: Tensor
    """v, [H, d]"""
    memory_key: Tensor
    """r, [H, W, d], from the farthest distance down to 0"""
    compressed_bias: Tensor | None = None
    """v', [H, d]; None without compressed memory"""
    compressed_key: Tensor | None = None
    """r', [H, W', d], likewise; distance 0 is not read"""


class Distances(NamedTuple):
    """The same as the plain way reads it: what belongs to a distance is q . r + v . r."""

    content_bias: Tensor
    """u, [H, 1, d]"""
    key: Tensor
    """[r' ; r], [H, d, W' + W]"""
    bias: Tensor
    """v' . r' and v . r, [H, 1, W' + W]"""
    far: int
    """Rows W' of compressed memory."""


class RelativeAttention(MemoryAttention[Distances]):
    """Multi-head attention with relative positions."""

    def __init__(self, config: ModelConfig, pinned: int = 0) -> None:
        super().__init__(config, pinned)
        width, heads = self.query_width, config.heads
        self.encoded = config.encoded
        self.position_key = Linear(self.encoded, width, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(heads, config.head_width))
        self.position_bias = nn.Parameter(torch.zeros(heads, config.head_width))
        if config.compressed:
            self.compressed_position_key = Linear(self.encoded, width, bias=False)
            self.compressed_position_bias = nn.Parameter(torch.zeros(heads, config.head_width))

    def backend(self) -> Backend:
        """How whole segments are read where this module's weights are, as model.backend says.

        auto: blocked on a CPU; elsewhere fused where queries are narrow enough and nothing asks for
        what that cannot give (the weights of attention, dropout of single encoded distances); else
        shift, the plain way. Shift also steps in for the others while somebody looks at the
        weights, and for blocked in a compiled graph and where nothing is computed ("meta").

        Raises:
            ValueError: the blocked way is asked for on a GPU.
        """
        config, device = self.config, self.content_bias.device.type
        eager_cpu = device == "cpu" and not torch.compiler.is_compiling()
        if config.backend == "blocked" and device == "cuda":
            raise ValueError("model.backend blocked is for CPUs; set it to auto")
        if config.backend in ("auto", "blocked") and eager_cpu:
            return "blocked"
        dropout = self.training and config.dropout > 0
        fits = config.fused_width <= FUSED_WIDTH and not dropout and not self.counts_attention
        return "fused" if fits and config.backend in ("auto", "fused") else "shift"

    def read(
        self, query_BHTd: Tensor, slots: Sequence[Slots], reading: Reading
    ) -> tuple[Tensor, Tensor | None]:
        """See MemoryAttention.read."""
        live, backend = reading.live_BN, self.backend()
        if backend == "fused":
            systems = self._systems(query_BHTd.device)
            whole = joined(slots).for_heads(self.config.heads)
            return attend_widened(query_BHTd, whole, self.content_bias, systems, reading), None
        slots = [part.for_heads(self.config.heads) for part in slots]
        if backend == "shift":
            places = Places(~visible(live, query_BHTd.shape[2])[:, 0])
            return self.attend(query_BHTd, [joined(slots)], self.tables(), places, *reading[1:])
        keys, values = zip(*slots, strict=True)
        dropped = dropped_weights(query_BHTd, sum(part.number for part in slots), reading.dropout)
        read, received = BlockedAttention.apply(
            query_BHTd,
            *self.by_system(),
            self.pinned,
            live,
            dropped,
            reading.received,
            *keys,
            *values,
        )
        return read, received

    def tables(self) -> Distances:
        """See MemoryAttention.tables."""
        u, bias, key, far_bias, far_key = self.by_system()
        key_HdW, bias_H1W, far = key.transpose(1, 2), bias[:, None] @ key.transpose(1, 2), 0
        if far_bias is not None and far_key is not None:
            far_HdW, far = far_key.transpose(1, 2), far_key.shape[1]
            bias_H1W = torch.cat([far_bias[:, None] @ far_HdW, bias_H1W], dim=-1)
            key_HdW = torch.cat([far_HdW, key_HdW], dim=-1)
        return Distances(u[:, None], key_HdW, bias_H1W, far)

    def by_system(self) -> Tables:
        """Biases [H, d] and projected position keys [H, W, d]."""
        config = self.config
        memory_key = self._position_keys(self.position_key, config.memory)
        near = Tables(self.content_bias, self.position_bias, memory_key)
        if not config.compressed:
            return near
        far = self._position_keys(self.compressed_position_key, config.compressed)
        return near._replace(compressed_bias=self.compressed_position_bias, compressed_key=far)

    def _position_keys(self, projection: LinearMap, slots: int) -> Tensor:
        distances_W = distances(slots, self.config.segment, self.content_bias.device)
        encoded = sinusoids(distances_W, self.encoded, self.content_bias.dtype)
        encoded = F.dropout(encoded, self.config.dropout, self.training)
        keys_WD: Tensor = projection(encoded)
        return keys_WD.unflatten(-1, (self.config.heads, -1)).transpose(0, 1)

    def _systems(self, device: torch.device) -> list[System]:
        """The position systems as fused attention takes them: of memory with the segment, and of
        compressed memory. Compressed slots count one each, directly before the segment.
        """
        config = self.config

        def by_head(projection: LinearMap) -> Tensor:
            return matrix_of(projection).unflatten(0, (config.heads, -1))

        near = torch.arange(-config.memory, config.segment, device=device)
        first = self.pinned + config.compressed
        systems = [System(self.position_bias, by_head(self.position_key), near, first)]
        if config.compressed:
            far = torch.arange(-config.compressed, 0, device=device)
            projection = by_head(self.compressed_position_key)
            systems.append(System(self.compressed_position_bias, projection, far, self.pinned))
        return systems

    def scores(
        self, query_BHtd: Tensor, parts: Sequence[Slots], tables: Distances, places: Places
    ) -> Tensor:
        """See MemoryAttention.scores; by Transformer-XL's shift."""
        content = content_scores(query_BHtd + tables.content_bias, parts)
        lanes, queries = query_BHtd.shape[0], query_BHtd.shape[2]
        # One product for every lane and both systems.
        every = query_BHtd.transpose(0, 1).flatten(1, 2)
        every = torch.baddbmm(tables.bias, every, tables.key)
        every = every.unflatten(1, (lanes, queries)).transpose(0, 1)
        pinned, compressed = self.pinned, self.config.compressed
        number = content.shape[-1] - compressed - pinned
        near = self._by_key(every[..., tables.far :], number, places)
        if not pinned and not compressed:
            return content + near
        # Pinned slots have no place: only their content is scored.
        scores = [content.new_zeros(*content.shape[:3], pinned)] if pinned else []
        if compressed:
            scores.append(self._by_key(every[..., : tables.far], compressed, places))
        return content + torch.cat([*scores, near], dim=-1)

    def _by_key(self, scores_BHtW: Tensor, keys: int, places: Places) -> Tensor:
        """Scores by distance, of tables for a whole segment, as scores by key.

        Tables go from far to near, so the scores of a query at place i begin at row T - 1 - i.
        """
        queries, segment = scores_BHtW.shape[2], self.config.segment
        if places.first is None:
            assert places.place_Bt is not None
            start = segment - 1 - places.place_Bt
            index = start[:, :, None] + torch.arange(keys, device=start.device)
            index = index.clamp(0, scores_BHtW.shape[-1] - 1)[:, None]
            return scores_BHtW.gather(-1, index.expand(-1, scores_BHtW.shape[1], -1, -1))
        if queries == 1:
            return scores_BHtW.narrow(-1, segment - 1 - places.first, keys)
        return relative_shift(scores_BHtW[..., segment - places.first - queries :], keys)


def distances(slots: int, segment: int, device: torch.device) -> Tensor:
    """Distances from far to near between the tokens of a segment and slots that lie directly before
    it or in it: slots + segment - 1 down to 0, [slots + segment].

    Compressed slots count one each and lie directly before the segment too, as in the authors'
    code. Their nearest distance is 1; with a row for 0, which nothing reads, usual tables have an
    even size, and products of odd size are slow.
    """
    return torch.arange(slots + segment - 1, -1, -1, device=device)


def relative_shift(scores: Tensor, keys: int) -> Tensor:
    """Turn scores by distance into scores by key (Transformer-XL, appendix B).

    scores[..., t, w] belongs to distance index w (far to near). Query t lies t steps further from
    every key than query 0, so key j of query t stands at w = j + T - 1 - t:

        w:    0 1 2 3 4          t = 0 reads  . . 2 3 4
        T=3                      t = 1 reads  . 1 2 3 .
                                 t = 2 reads  0 1 2 . .

    Padding each row by one column and viewing the same memory with rows one shorter does this
    without a gather. Entries beyond a row's end (keys after the query) are arbitrary finite values.

    Args:
        scores: [..., T, W] with W >= keys.
        keys: number of keys wanted per query.

    Returns:
        [..., T, keys]
    """
    queries = scores.shape[-2]
    width = keys + queries - 1
    padded = torch.nn.functional.pad(scores, (0, width + 1 - scores.shape[-1]))
    flat = padded.flatten(-2)[..., queries - 1 : queries - 1 + queries * width]
    return flat.unflatten(-1, (queries, width))[..., :keys]
