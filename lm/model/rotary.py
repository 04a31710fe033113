"""Rotary positions by time (Su et al., arXiv 2104.09864), with compressed memory on the same axis.

Shapes as in attention.py. Queries and keys are turned by angles in proportion to their place, so a
score depends on the distance in tokens, and scaled-dot-product attention applies as it is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lm.model.attention import MemoryAttention, Reading, dropped_weights, visible
from lm.model.config import ModelConfig
from lm.model.open_attention import OpenKeys, Places, content_scores
from lm.model.slots import Slots, joined


class Rotation(NamedTuple):
    """Angles of every slot of [compressed ; memory ; segment]."""

    cos_Sd: Tensor
    sin_Sd: Tensor


def places(config: ModelConfig, device: torch.device) -> Tensor:
    """Where slots stand in time, in tokens from the first of the segment, [S] float64.

    Compressed slots end where memory begins. Each stands at the centre of the tokens it was made
    from (`rotary`) or counts as one token (`rotary_slots`).
    """
    age = torch.arange(config.compressed - 1, -1, -1, dtype=torch.float64, device=device)
    span = config.segment / config.windows if config.positions == "rotary" else 1.0
    compressed = -config.memory - age * span - (span + 1) / 2
    recent = torch.arange(-config.memory, config.segment, dtype=torch.float64, device=device)
    return torch.cat([compressed, recent])


def rotate(x_BHnd: Tensor, cos_nd: Tensor, sin_nd: Tensor) -> Tensor:
    """Turn each pair (channel of the first half, channel of the second) by its angle."""
    first, second = x_BHnd.chunk(2, dim=-1)
    return x_BHnd * cos_nd + torch.cat([-second, first], dim=-1) * sin_nd


class RotaryAttention(MemoryAttention[Rotation]):
    """Multi-head attention with rotary positions; they need no parameters."""

    def positions(self) -> Rotation:
        """Cosines and sines [S, d]; angles are formed in float64."""
        weight, half = next(self.parameters()), self.config.head_width // 2
        place_S = places(self.config, weight.device)
        exponents = torch.arange(half, dtype=torch.float64, device=weight.device) / half
        angles = place_S[:, None] * 10000.0**-exponents
        angles = torch.cat([angles, angles], dim=-1)
        return Rotation(angles.cos().to(weight.dtype), angles.sin().to(weight.dtype))

    def place(self, key_BHnd: Tensor, positions: Rotation, first: int) -> Tensor:
        """Keys turned to their places."""
        part = slice(first, first + key_BHnd.shape[2])
        return rotate(key_BHnd, positions.cos_Sd[part], positions.sin_Sd[part])

    def lift(self, key_BHnd: Tensor, positions: Rotation, first: int) -> Tensor:
        """Keys turned back."""
        part = slice(first, first + key_BHnd.shape[2])
        return rotate(key_BHnd, positions.cos_Sd[part], -positions.sin_Sd[part])

    def open_keys(self, key_BHtd: Tensor, tables: Rotation, places: Places) -> Tensor:
        """Keys turned to their places."""
        slot_Bt = self.config.slots + places.place_Bt
        return rotate(key_BHtd, tables.cos_Sd[slot_Bt][:, None], tables.sin_Sd[slot_Bt][:, None])

    def open_scores(
        self, query_BHtd: Tensor, keys: OpenKeys, tables: Rotation, places: Places
    ) -> Tensor:
        """See MemoryAttention.open_scores."""
        return content_scores(self.open_keys(query_BHtd, tables, places), keys, places.keys)

    def read(
        self,
        query_BHTd: Tensor,
        slots: Sequence[Slots],
        positions: Rotation,
        reading: Reading,
    ) -> tuple[Tensor, Tensor | None]:
        """See MemoryAttention.read."""
        query = self.place(query_BHTd, positions, self.config.slots)
        key, value = joined(slots)
        key, mask = self.place(key, positions, 0), visible(reading, query.shape[2])
        if not reading.received:
            read = F.scaled_dot_product_attention(
                query, key, value, attn_mask=mask, dropout_p=reading.dropout, scale=1.0
            )
            return read, None
        scores = (query @ key.transpose(-1, -2)).masked_fill(~mask, float("-inf"))
        weights = scores.softmax(dim=-1)
        received = weights.detach().sum(dim=(1, 2))
        dropped = dropped_weights(query, key.shape[2], reading)
        weights = weights if dropped is None else weights * dropped
        return weights @ value, received
