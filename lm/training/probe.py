"""The loss of a fixed batch, by which a checkpoint proves that it was read back whole."""

from pathlib import Path

import torch

from data.lanes import LaneReader
from data.shards import Shards
from lm.training.unroll import Unroll, on_device

SEGMENTS = 2
"""The second segment reads the first through memory."""
TOLERANCE = {"float32": 1e-4, "bf16": 2e-2}
"""Relative: another machine or number of threads sums in another order."""


@torch.no_grad()
def probe(module: Unroll, shards: Shards, device: torch.device) -> float:
    """Nats of the first segments of the training split, read by one lane without dropout.

    Every rank computes the same.
    """
    model = module.model
    reader = LaneReader(shards.split("train"), lanes=1, segment=model.config.segment)
    batches = [reader.next() for _ in range(SEGMENTS)]
    training = model.training
    model.eval()
    losses, _, _ = module(on_device(batches, slice(None), device), model.empty_memory(1))
    model.train(training)
    return losses["nats"][0].item()


def check_probe(value: float, stored: float | None, precision: str, folder: Path) -> None:
    """Compare the probe of a restored model with that of the saved one.

    Raises:
        ValueError: they differ by more than rounding.
    """
    if stored is not None and not abs(value - stored) <= TOLERANCE[precision] * abs(stored):
        raise ValueError(
            f"{folder} does not give the loss it was saved with ({value:.4f} instead of "
            f"{stored:.4f} nats), so its weights are damaged; continue from another checkpoint "
            "with --checkpoint"
        )
