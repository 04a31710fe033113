"""Rotary positions by time (Su et al., arXiv 2104.09864), with compressed memory on the same axis.

Shapes as in base.py. Queries and keys are turned by angles in proportion to their place, so a
score depends on the distance in tokens, and scaled-dot-product attention applies as it is.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lm.model.attention.base import (
    MemoryAttention,
    Places,
    Reading,
    Slots,
    content_scores,
    joined,
    visible,
)
from lm.model.components import exact_device
from lm.model.model_config import ModelConfig


class Rotation(NamedTuple):
    """Angles of every slot of [pinned ; compressed ; memory ; segment], for the r dimensions of a
    head that are turned.
    """

    cos_Sr: Tensor
    sin_Sr: Tensor
    weight_S: Tensor | None
    """Logarithm of the tokens that each slot weighs as many as; None where all weigh as one."""


def places(config: ModelConfig, pinned: int, device: torch.device) -> Tensor:
    """Where slots stand in time, in tokens from the first of the segment, [S] float64.

    Compressed slots end where memory begins. Each stands at the centre of the tokens it was made
    from (`rotary`) or counts as one token (`rotary_slots`). Pinned slots stand directly before all
    that compressed memory can reach.
    """
    age = torch.arange(config.compressed - 1, -1, -1, dtype=torch.float64, device=device)
    span = config.segment / config.windows if config.positions == "rotary" else 1.0
    compressed = -config.memory - age * span - (span + 1) / 2
    recent = torch.arange(-config.memory, config.segment, dtype=torch.float64, device=device)
    reach = config.memory + config.compressed * span
    pinned_k = torch.arange(-pinned, 0, dtype=torch.float64, device=device) - reach
    return torch.cat([pinned_k, compressed, recent])


def merged(config: ModelConfig, pinned: int, device: torch.device) -> Tensor:
    """How many tokens each slot was merged from, on average where windows differ, [S] float64."""
    tokens = torch.ones(pinned + config.slots + config.segment, dtype=torch.float64, device=device)
    tokens[pinned : pinned + config.compressed] = config.segment / config.windows
    return tokens


def frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """Radians a token of each turned pair of dimensions, [r / 2] float64, fastest first."""
    half = config.turned // 2
    exponents = torch.arange(half, dtype=torch.float64, device=device) / half
    fast = config.rotary_base**-exponents
    if config.rotary_scaling == "none":
        return fast
    if config.rotary_scaling == "linear":
        return fast / config.rotary_factor
    assert config.rotary_trained is not None
    # Llama 3: how many turns a pair makes within the trained length decides.
    low, high = config.rotary_bounds
    turns = config.rotary_trained * fast / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return fast * kept + fast / config.rotary_factor * (1 - kept)


def rotate(x_BHnd: Tensor, cos_nr: Tensor, sin_nr: Tensor) -> Tensor:
    """Turn each pair (channel of the first half, channel of the second) of the first r dimensions
    by its angle; the others stay.
    """
    turned = cos_nr.shape[-1]
    if turned < x_BHnd.shape[-1]:
        left, right = x_BHnd.split([turned, x_BHnd.shape[-1] - turned], dim=-1)
        return torch.cat([rotate(left, cos_nr, sin_nr), right], dim=-1)
    first, second = x_BHnd.chunk(2, dim=-1)
    return x_BHnd * cos_nr + torch.cat([-second, first], dim=-1) * sin_nr


class RotaryAttention(MemoryAttention[Rotation]):
    """Multi-head attention with rotary positions; they need no parameters."""

    def tables(self) -> Rotation:
        """Cosines and sines [S, r]; angles are formed in float64."""
        weight = next(self.parameters())
        device = exact_device(weight.device)
        place_S = places(self.config, self.pinned, device)
        angles = place_S[:, None] * frequencies(self.config, device)
        angles = torch.cat([angles, angles], dim=-1)

        def placed(table: Tensor) -> Tensor:
            return table.to(weight.dtype).to(weight.device)

        number_S = None
        if self.config.proportional_attention and self.config.compressed:
            number_S = placed(merged(self.config, self.pinned, device).log())
        return Rotation(placed(angles.cos()), placed(angles.sin()), number_S)

    def place(self, key_BHnd: Tensor, tables: Rotation, at: slice | Tensor) -> Tensor:
        """Keys turned to their places."""
        # A dimension for the heads.
        return rotate(key_BHnd, *(table[at].unsqueeze(-3) for table in tables[:2]))

    def lift(self, key_BHnd: Tensor, tables: Rotation, at: slice) -> Tensor:
        """Keys turned back."""
        return rotate(key_BHnd, tables.cos_Sr[at], -tables.sin_Sr[at])

    def scores(
        self, query_BHtd: Tensor, parts: Sequence[Slots], tables: Rotation, places: Places
    ) -> Tensor:
        """See MemoryAttention.scores."""
        at = self.slots_of(places, query_BHtd.shape[2])
        scores = content_scores(self.place(query_BHtd, tables, at), parts)
        if tables.weight_S is not None:
            scores = scores + tables.weight_S[: scores.shape[-1]]
        return scores

    def read(
        self, query_BHTd: Tensor, slots: Sequence[Slots], reading: Reading
    ) -> tuple[Tensor, Tensor | None]:
        """See MemoryAttention.read."""
        tables, seen = self.tables(), visible(reading.live_BN, query_BHTd.shape[2])
        key, value = joined(slots).for_heads(self.config.heads)
        key = self.place(key, tables, slice(None))
        plain = query_BHTd.device.type != "cpu" or reading.dropout or self.counts_every_key
        if reading.received and plain:
            places = Places(~seen[:, 0])
            return self.attend(query_BHTd, [Slots(key, value)], tables, places, *reading[1:])
        query = self.place(query_BHTd, tables, slice(key.shape[2] - query_BHTd.shape[2], None))
        if reading.received:
            first = self.pinned + self.config.compressed
            leaving = slice(first, first + self.config.segment)
            return read_and_received(query, Slots(key, value), seen, leaving)
        if tables.weight_S is not None:
            seen = torch.where(seen, tables.weight_S, float("-inf"))
        read = F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, dropout_p=reading.dropout, scale=1.0
        )
        return read, None


def read_and_received(
    query_BHTd: Tensor, slots: Slots, seen_B1TS: Tensor, leaving: slice
) -> tuple[Tensor, Tensor]:
    """What queries read by torch's fused attention for CPUs, [B, H, T, d], and the attention
    [B, S] that some slots received; the others have 0.

    The kernel also returns the logarithm of each query's sum of exponentials, which makes weights
    of the scores of these slots alone.

    Args:
        query_BHTd: scaled queries with their positions.
        slots: what they read, with theirs, for as many heads.
        seen_B1TS: bool, what may be seen.
        leaving: the slots in question.
    """
    hidden = torch.zeros_like(seen_B1TS, dtype=query_BHTd.dtype).masked_fill(~seen_B1TS, -math.inf)
    read, norm_BHT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query_BHTd, *slots, attn_mask=hidden, scale=1.0
    )
    with torch.no_grad():
        # In place, and in float32 where queries are in bfloat16: scores in the tens, rounded to
        # eight bits, would make weights that are wrong by a tenth.
        exact, tokens = norm_BHT.dtype, slots.number - query_BHTd.shape[2]
        weights = query_BHTd.to(exact) @ slots.key_BKnd[:, :, leaving].to(exact).mT
        weights.sub_(norm_BHT.unsqueeze(-1)).exp_()
        weights[..., tokens - leaving.start :].masked_fill_(
            ~seen_B1TS[..., tokens : leaving.stop], 0.0
        )
        # The last query sees all that any may see.
        received_BS = weights.new_zeros(len(read), slots.number)
        received_BS[:, leaving] = weights.sum(dim=(1, 2)) * seen_B1TS[:, 0, -1, leaving]
    return read, received_BS
