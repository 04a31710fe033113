"""What one back-propagation spans: some consecutive segments of some lanes.

Shapes: K segments, B lanes, T tokens of a segment.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data.lanes import Batch
from lm.feeding import tensors
from lm.model import CompressiveTransformer, MemoryState

Loss = tuple[Tensor, Tensor]
"""Sum and count."""


class Unroll(nn.Module):
    """The model over K segments: sums and counts of its losses, and memory after the last.

    The gradient passes from segment to segment through compressed memory and ends at the first; the
    memory returned is cut off. DeepSpeed sees this module, because from stage 1 on it needs plain
    tensors to come out.
    """

    def __init__(self, model: CompressiveTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, segments: list[tuple[Tensor, ...]], memory: MemoryState
    ) -> tuple[dict[str, Loss], dict[str, Loss], MemoryState]:
        """Read segments in order.

        Args:
            segments: for each, inputs, targets [B, T] int64, scored [B, T] bool, reset [B] bool.
            memory: of the B lanes, before the first segment and its resets.

        Returns:
            The losses by name, the likelihood in nats first; those that are known by layer, [l]
            each, to be looked at only; and memory.
        """
        losses: dict[str, Loss] = {}
        by_layer: dict[str, Loss] = {}
        for inputs, targets, scored, reset in segments:
            output = self.model(inputs, memory.reset(reset), targets)
            memory = output.memory
            nats = ((output.predictions * scored).sum(), scored.sum())
            _add(losses, {"nats": nats, **output.auxiliary})
            _add(by_layer, output.by_layer)
        return losses, by_layer, memory.detach()


def _add(sums: dict[str, Loss], more: Mapping[str, Loss]) -> None:
    for name, (total, count) in more.items():
        before = sums.get(name)
        sums[name] = (total, count) if before is None else (before[0] + total, before[1] + count)


def on_device(batches: list[Batch], lanes: slice, device: torch.device) -> list[tuple[Tensor, ...]]:
    """Some lanes of consecutive batches as Unroll reads them."""
    return [tensors(batch, lanes, device) for batch in batches]


def scored_tokens(batches: list[Batch]) -> int:
    """Tokens of these batches that count."""
    return int(sum(np.count_nonzero(batch.scored_BT) for batch in batches))


def checkpoint_activations(model: CompressiveTransformer) -> None:
    """Make each layer keep its inputs alone and compute the rest again in the backward pass.

    A layer is a pure function of its inputs and memory, so the second time gives the same values;
    torch restores the random state for dropout.
    """
    for block in model.layers:
        again = partial(checkpoint, block.forward, use_reentrant=False)
        block.forward = again  # type: ignore[method-assign]
