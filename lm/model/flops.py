"""Floating-point operations of training, counted from the matrix products of each part.

A product of [n, k] and [k, m] is 2 n k m operations. Masked scores are counted: they are computed.
"""

from dataclasses import dataclass, fields

from lm.model.config import ModelConfig


@dataclass(frozen=True)
class Flops:
    """Operations per trained token, by part."""

    projections: float
    """Queries, keys, values and output of the segment."""
    memory_projections: float
    """Keys and values of memory, projected anew each segment; no gradient goes to memory."""
    positions: float
    """Projection of the encoded distances, shared by the lanes."""
    content_scores: float
    position_scores: float
    values: float
    """Weighted sums of values."""
    feedforward: float
    compression: float
    reconstruction: float
    head: float

    @property
    def total(self) -> float:
        """All parts together."""
        return float(sum(getattr(self, field.name) for field in fields(self)))


def training_flops(config: ModelConfig, vocabulary: int, lanes: int) -> Flops:
    """Operations to train on one token with both memories full.

    A forward product counts once, and once more for each operand that gets a gradient.

    Args:
        config: the model.
        vocabulary: size of the output layer.
        lanes: lanes that share one projection of the encoded distances.
    """
    width, segment = config.width, config.segment
    far = config.compressed + segment - 1 if config.compressed else 0
    distances = config.memory + segment + far
    attended = (config.slots + segment) * width
    layer = {
        "projections": 3 * 4 * width**2,
        "memory_projections": 2 * 2 * width**2 * config.slots / segment,
        # Encoded distances are constants, so the product has one gradient.
        "positions": 2 * width**2 * distances / (segment * lanes),
        "content_scores": 3 * attended,
        "position_scores": 3 * distances * width,
        "values": 3 * attended,
        "feedforward": 3 * 2 * width * config.feedforward,
        "compression": 0.0,
        "reconstruction": 0.0,
    }
    if config.compressed:
        layer["compression"] = 2 * width**2
        if config.reconstruction == "attention":
            new = segment // config.rate
            # The target is read without gradient; of the new block's attention, keys get one
            # gradient, values and weights one each; its projections have constant weights.
            layer["reconstruction"] = (
                2 * segment * width + (2 + 3) * new * width + 2 * 2 * width**2 / config.rate
            )
    parts = {name: 2.0 * config.layers * value for name, value in layer.items()}
    return Flops(**parts, head=2.0 * 3 * width * vocabulary)
