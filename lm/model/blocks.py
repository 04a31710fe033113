"""One layer: attention over memory, feed-forward, and the layer's own compression (pre-norm).

Shapes as in attention.py.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm.model.attention import Attended, RelativeAttention
from lm.model.compression import COMPRESSIONS
from lm.model.config import Activation, ModelConfig
from lm.model.memory import Counts, evict, live_mask, push
from lm.model.reconstruction import LossSum, attention_reconstruction

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"relu": F.relu, "gelu": F.gelu}


class FeedForward(nn.Module):
    """Two linear maps with a non-linearity between them."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation: Callable[[Tensor], Tensor] = ACTIVATIONS[config.activation]
        self.inner = nn.Linear(config.width, config.feedforward)
        self.outer = nn.Linear(config.feedforward, config.width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        hidden: Tensor = self.outer(self.activation(self.inner(x_BTD)))
        return hidden


class LayerStep(NamedTuple):
    """What a layer returns for one segment."""

    hidden_BTD: Tensor
    memory_BMD: Tensor
    compressed_BCD: Tensor
    reconstruction: LossSum | None


class Block(nn.Module):
    """A pre-norm layer with memory."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = RelativeAttention(config)
        self.feedforward_norm = nn.LayerNorm(config.width)
        self.feedforward = FeedForward(config)
        if config.compressed:
            self.compression = COMPRESSIONS[config.compression](config)

    def forward(
        self,
        hidden_BTD: Tensor,
        memory_BMD: Tensor,
        compressed_BCD: Tensor,
        live_BN: Tensor,
        counts: Counts,
    ) -> LayerStep:
        """Read memory, transform the segment, and move the segment into memory.

        Args:
            hidden_BTD: the residual stream.
            memory_BMD: this layer's memory before the segment.
            compressed_BCD: its compressed memory.
            live_BN: live slots of [compressed ; memory].
            counts: how the live counts move with this segment.
        """
        inputs = self.attention_norm(hidden_BTD)
        slots = torch.cat([compressed_BCD, memory_BMD], dim=1)
        attended = self.attention(inputs, slots, live_BN)
        hidden = self.after_attention(hidden_BTD, attended.output_BTD)
        memory, compressed, loss = self.move(inputs, memory_BMD, compressed_BCD, counts, attended)
        return LayerStep(hidden, memory, compressed, loss)

    def after_attention(self, hidden_BTD: Tensor, attention_BTD: Tensor) -> Tensor:
        """Both residual additions, with the feed-forward between them."""
        dropout = self.config.dropout
        hidden = hidden_BTD + F.dropout(attention_BTD, dropout, self.training)
        outer = self.feedforward(self.feedforward_norm(hidden))
        return hidden + F.dropout(outer, dropout, self.training)

    def move(
        self,
        inputs_BTD: Tensor,
        memory_BMD: Tensor,
        compressed_BCD: Tensor,
        counts: Counts,
        attended: Attended | None,
    ) -> tuple[Tensor, Tensor, LossSum | None]:
        """Commit a segment's inputs to memory and compress what falls out.

        With `attended`, in training, also the reconstruction loss of the block that falls out.
        """
        old, memory = evict(memory_BMD, inputs_BTD, counts.evicted)
        if not self.config.compressed:
            return memory, compressed_BCD, None
        new = self.compression(old)
        loss = None
        if attended is not None and self.training and self.config.reconstruction == "attention":
            loss = self._reconstruction(new, counts, attended)
        return memory, push(compressed_BCD, new), loss

    def _reconstruction(self, new_BnD: Tensor, counts: Counts, attended: Attended) -> LossSum:
        queries = attended.query_BHTd.shape[2]
        first = self.config.compressed
        old_key = attended.key_BHSd[:, :, first : first + queries].detach()
        old_value = attended.value_BHSd[:, :, first : first + queries].detach()
        new_key, new_value = self.attention.keys_values(new_BnD, detached=True)
        return attention_reconstruction(
            attended.query_BHTd,
            (old_key, old_value, live_mask(counts.evicted, queries)),
            (new_key, new_value, live_mask(counts.new_compressed, new_BnD.shape[1])),
        )
