"""Attention over [pinned ; compressed ; memory ; segment]: what every scheme of positions shares.

A whole segment is read by `MemoryAttention.forward`. What a scheme adds is how positions enter
(`tables`, `place`, `lift`, `scores`) and its fastest way to read (`read`). The plain way, `attend`,
is shared by decoding, which extends an open segment a few tokens at a time, and by whole segments
wherever the weights of attention are wanted or nothing faster is at hand.

Shapes: B lanes, T queries, k pinned slots (pinned.py), C compressed slots, M memory slots,
N = k + C + M, S = N + segment tokens, H heads of queries, K of keys and values, d dimensions of a
head, D width. In decoding t new tokens of each lane, L tokens of the open segment that a query may
see, and B' lanes of memory, of which each serves B / B' neighbouring lanes of tokens: several
continuations of one text share what it has read.
"""

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm.model.components import Linear, exact_device, rows_of, wide
from lm.model.compression import USES_ATTENTION
from lm.model.model_config import ModelConfig


class Slots(NamedTuple):
    """Neighbouring slots as attention sees them."""

    key_BKnd: Tensor
    value_BKnd: Tensor

    @property
    def number(self) -> int:
        """Number of slots n."""
        return self.key_BKnd.shape[2]

    def for_heads(self, heads: int) -> "Slots":
        """The same for so many heads of queries: key-value heads repeated, side by side."""
        stored = self.key_BKnd.shape[1]
        if stored == heads:
            return self
        shared = heads // stored
        return Slots(*(x.repeat_interleave(shared, dim=1) for x in self))

    def narrow(self, first: int, stop: int) -> "Slots":
        """Some of them, as views."""
        return Slots(self.key_BKnd[:, :, first:stop], self.value_BKnd[:, :, first:stop])


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


class Reading(NamedTuple):
    """How a whole segment is read."""

    live_BN: Tensor
    """Which slots of [pinned ; compressed ; memory] may be seen."""
    dropout: float = 0.0
    """Share of the attention weights that is dropped."""
    received: bool = False
    """Whether the attention that each key receives is wanted."""


class Places(NamedTuple):
    """Which tokens of their segments the queries are, and what they may see."""

    hidden_BtS: Tensor | None
    """bool, true where a query may not see a key of [pinned ; compressed ; memory ; segment up to
    L] of layers with memory; None where every query may see all of them."""
    first: int | None = 0
    """Place of the first query where it is the same in every lane, else None."""
    place_Bt: Tensor | None = None
    """int64, places of all; a lane that reads fewer than t tokens has some for the others too. Not
    needed where `first` is known."""
    dead_Bt: Tensor | None = None
    """bool, true for tokens that are not there; None where all are."""


class Attended(NamedTuple):
    """What one attention call computed, for the reconstruction loss and for caches."""

    output_BTD: Tensor
    query_BHTd: Tensor
    slots: tuple[Slots, ...]
    """What was read, in parts, oldest first; the last is the segment."""
    received_BS: Tensor | None
    """Attention that each key received, summed over heads and queries, if compression asks; unless
    every key is counted, a scheme may leave 0 for slots that do not leave memory now."""


TablesT = TypeVar("TablesT")


class MemoryAttention(nn.Module, Generic[TablesT]):
    """Multi-head attention of a segment over both memories and itself."""

    def __init__(self, config: ModelConfig, pinned: int = 0) -> None:
        """pinned: number of pinned slots k."""
        super().__init__()
        self.config, self.pinned, self.head_width = config, pinned, config.head_width
        self.before = pinned + config.slots
        """Slots before the segment, N."""
        self.counts_attention = config.compressed > 0 and config.compression in USES_ATTENTION
        self.counts_every_key = False
        """Whether the attention of all keys is wanted, beyond what compression asks for."""
        self.query_width = config.heads * config.head_width
        self.head_counts = [config.heads, config.stored_heads, config.stored_heads]
        """Heads of queries, keys and values."""
        stored, bias = config.stored_heads * config.head_width, config.attention_bias
        self.query_key_value = Linear(
            config.width, self.query_width + 2 * stored, bias=bias != "none"
        )
        self.output = Linear(self.query_width, config.width, bias=bias == "all")
        if config.query_key_norm:
            self.query_norm = nn.RMSNorm(config.head_width, config.norm_epsilon)
            self.key_norm = nn.RMSNorm(config.head_width, config.norm_epsilon)

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
        read, received = self.read(query, slots, reading)
        return Attended(self.join_heads(read), query, slots, received)

    def read(
        self, query_BHTd: Tensor, slots: Sequence[Slots], reading: Reading
    ) -> tuple[Tensor, Tensor | None]:
        """What the queries of a whole segment read, [B, H, T, d], and the attention [B, S] that
        slots received, if it is wanted.

        Args:
            query_BHTd: scaled queries.
            slots: parts of [pinned ; compressed ; memory ; segment], as they were projected.
            reading: how they are read.
        """
        raise NotImplementedError

    def tables(self) -> TablesT:
        """What is to be known of the positions of a segment; depends on weights and lengths."""
        raise NotImplementedError

    def place(self, key_BHnd: Tensor, tables: TablesT, at: slice | Tensor) -> Tensor:  # noqa: ARG002
        """Keys with their positions; as they are where positions come in with the queries.

        Args:
            key_BHnd: keys as they were projected.
            tables: see `tables`.
            at: which slots of [pinned ; compressed ; memory ; segment] they are, [B, n] where
                lanes differ.
        """
        return key_BHnd

    def lift(self, key_BHnd: Tensor, tables: TablesT, at: slice) -> Tensor:  # noqa: ARG002
        """The inverse of `place`."""
        return key_BHnd

    def scores(
        self, query_BHtd: Tensor, parts: Sequence[Slots], tables: TablesT, places: Places
    ) -> Tensor:
        """Scores of all keys, [B, H, t, S]; none is hidden yet. See `attend`."""
        raise NotImplementedError

    def attend(
        self,
        query_BHtd: Tensor,
        parts: Sequence[Slots],
        tables: TablesT,
        places: Places,
        dropout: float = 0.0,
        received: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Plain attention, through all its weights: what queries read, [B, H, t, d], and, if asked,
        the attention [B, S] that keys received, summed over heads and queries, before dropout and
        without gradient.

        Args:
            query_BHtd: scaled queries.
            parts: of [pinned ; compressed ; memory ; segment up to L], with placed keys.
            tables: see `tables`.
            places: of the queries.
            dropout: share of the weights that is dropped.
            received: whether the attention that keys receive is wanted.
        """
        scores = self.scores(query_BHtd, parts, tables, places)
        if places.hidden_BtS is not None:
            # A layer without memory has fewer keys; they are the last.
            hidden = places.hidden_BtS[:, None, :, -scores.shape[-1] :]
            scores = scores.masked_fill(hidden, float("-inf"))
        weights = scores.softmax(dim=-1)
        total = None
        if received:
            alive = weights.detach()
            if places.dead_Bt is not None:
                alive = alive.masked_fill(places.dead_Bt[:, None, :, None], 0.0)
            # Small shares of many queries are lost in bfloat16.
            total = alive.sum(dim=(1, 2), dtype=wide(alive.dtype))
        dropped = dropped_weights(query_BHtd, weights.shape[-1], dropout)
        weights = weights if dropped is None else weights * dropped
        return weighted_values(weights, parts), total

    def slots_of(self, places: Places, queries: int) -> slice | Tensor:
        """Which of [pinned ; compressed ; memory ; segment] the queries are, for `place`."""
        if places.first is None:
            assert places.place_Bt is not None
            return self.before + places.place_Bt
        first = self.before + places.first
        return slice(first, first + queries)

    def split_heads(self, x_BTh: Tensor) -> Tensor:
        """[B, T, H d] -> [B, H, T, d], for any number of heads."""
        return x_BTh.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

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
        projected = rows_of(self.query_key_value, stored_BnD, self.query_width, detached)
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
        scale = self.head_width**-0.5
        every = self.split_heads(self.query_key_value(inputs_BTD))
        query, key, value = every.split(self.head_counts, dim=1)
        if self.config.query_key_norm:
            return self.query_norm(query) * scale, self.normed_keys(key), value
        return query * scale, key, value


def visible(live_BN: Tensor, queries: int) -> Tensor:
    """[B, 1, T, N + T] bool: live slots, and the segment up to the query itself."""
    lanes, slots = live_BN.shape
    causal = torch.ones(queries, queries, dtype=torch.bool, device=live_BN.device)
    causal = causal.tril().expand(lanes, queries, -1)
    memory = live_BN[:, None, :].expand(lanes, queries, slots)
    return torch.cat([memory, causal], dim=-1)[:, None]


def dropped_weights(query_BHtd: Tensor, keys: int, dropout: float) -> Tensor | None:
    """Random factors 0 or 1 / (1 - dropout) of the attention weights, [B, H, t, S]."""
    if dropout == 0:
        return None
    kept = query_BHtd.new_empty(*query_BHtd.shape[:3], keys).bernoulli_(1 - dropout)
    return kept.div_(1 - dropout)


def product(x_BHtm: Tensor, y_BKmn: Tensor) -> Tensor:
    """Matrix products [B, H, t, n], where neighbouring heads share the right factor of K heads and
    neighbouring lanes that of B' lanes; it is not copied for them.
    """
    (lanes, heads), (stored_lanes, stored) = x_BHtm.shape[:2], y_BKmn.shape[:2]
    if lanes != stored_lanes:
        x_BHtm = x_BHtm.unflatten(0, (stored_lanes, -1)).transpose(1, 2).flatten(2, 3)
    if heads != stored:
        x_BHtm = x_BHtm.unflatten(1, (stored, -1)).flatten(2, 3)
    result = x_BHtm @ y_BKmn
    if heads != stored:
        result = result.unflatten(2, (heads // stored, -1)).flatten(1, 2)
    if lanes != stored_lanes:
        shared = lanes // stored_lanes
        result = result.unflatten(2, (shared, -1)).transpose(1, 2).flatten(0, 1)
    return result


def content_scores(query_BHtd: Tensor, parts: Sequence[Slots]) -> Tensor:
    """Products of queries and the keys of all parts, [B, H, t, S]."""
    scores = [product(query_BHtd, part.key_BKnd.transpose(-1, -2)) for part in parts]
    return scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1)


def weighted_values(weights_BHtS: Tensor, parts: Sequence[Slots]) -> Tensor:
    """Sums of the values of all parts weighted by attention, [B, H, t, d]."""
    if len(parts) == 1:
        return product(weights_BHtS, parts[0].value_BKnd)
    pieces = weights_BHtS.split([part.number for part in parts], dim=-1)
    read, *others = (
        product(piece, part.value_BKnd) for piece, part in zip(pieces, parts, strict=True)
    )
    for other in others:
        read = read + other
    return read


def sinusoids(distances_W: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Encode distances in tokens or slots: all sines, then all cosines, shape [W, width].

    Angles are formed in float64, so that long distances keep their phase in every dtype.
    """
    device = exact_device(distances_W.device)
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float64) / width
    angles = distances_W.to(device).to(torch.float64)[:, None] * 10000.0**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype).to(distances_W.device)
