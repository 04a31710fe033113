"""The settings of ModelConfig one by one: what numbers must be, and which joined when."""

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


JOINED_IN_TURN = (
    (
        *("key_value_heads", "head_size", "query_key_norm", "attention_bias", "feedforward_bias"),
        *("norm_kind", "norm_epsilon", "rotary_base", "rotary_share", "rotary_scaling"),
        *("rotary_factor", "rotary_trained", "rotary_bounds", "sinks", "sink", "memories"),
        *("embedding_scale", "head_bias"),
    ),
    ("max_positions", "compression_initial", "compression_rank", "leaky_inputs", "initial"),
    ("filters", "filter_longest", "proportional_attention"),
)
"""Settings that the first version did not have; what is older means their defaults."""
JOINED = {name for names in JOINED_IN_TURN for name in names}


def missing_together(names: set[str]) -> bool:
    """Whether a version has had all settings but these."""
    later = [JOINED_IN_TURN[first:] for first in range(len(JOINED_IN_TURN))]
    return any(names == {name for turn in turns for name in turn} for turns in later)
