"""What the numbers of ModelConfig must be, each by itself."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

ONE = ("at least 1", lambda value: value >= 1)
ZERO = ("at least 0", lambda value: value >= 0)
POSITIVE = ("positive", lambda value: value > 0)
SHARE = ("at least 0 and below 1", lambda value: 0 <= value < 1)
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    **dict.fromkeys(("layers", "width", "heads", "feedforward", "segment", "rate"), ONE),
    **dict.fromkeys(("head_size", "head_chunk", "cluster_divisor", "rotary_trained"), ONE),
    "max_positions": ONE,
    **dict.fromkeys(("memory", "compressed", "sinks", "extra_kernel", "compression_rank"), ZERO),
    "filters": ZERO,
    **dict.fromkeys(("norm_epsilon", "embedding_scale"), POSITIVE),
    "rotary_base": ("above 1", lambda value: value > 1),
    "filter_longest": ("above 1 and finite", lambda value: 1 < value < math.inf),
    **dict.fromkeys(("dropout", "attention_dropout"), SHARE),
}
"""What numbers must be, whatever the others are; in words, and as a test."""


def rising(numbers: Sequence[int]) -> bool:
    """Whether each number is above the one before."""
    return all(low < high for low, high in pairwise(numbers))
