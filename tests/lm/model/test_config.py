"""What cannot be built, or would have no effect, is refused with a sentence saying what to do."""

from typing import Any

import pytest
import torch

from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"layers": 0}, "model.layers must be at least 1"),
    ({"memory": -1}, "model.memory must be at least 0"),
    ({"width": 36, "heads": 8}, "multiple of model.heads"),
    ({"width": 9, "heads": 3}, "must be even"),
    ({"dropout": 1.0}, "model.dropout must be at least 0 and below 1"),
    ({"compression": "mean"}, "nothing to learn; set model.reconstruction to none"),
    (
        {"compression": "mean", "reconstruction": "none", "compression_initial": "mean"},
        "no effect with model.compression mean; set it to random",
    ),
    ({"compression_rank": -1, "compression_initial": "mean"}, "must be at least 0"),
    ({"compression_rank": 4}, "needs model.compression conv and model.compression_initial mean"),
    (
        {"compression": "dilated", "compression_initial": "mean", "compression_rank": 4},
        "needs model.compression conv and model.compression_initial mean",
    ),
    ({"max_positions": 8192}, "no effect with model.positions relative"),
    ({"positions": "rotary", "max_positions": 3071}, "span 3,072: lower one of these, or set"),
    ({"positions": "rotary", "max_positions": 3075, "sinks": 4}, "span 3,076"),
    ({"positions": "rotary_slots", "max_positions": 1535}, "span 1,536"),
    ({"extra_kernel": -1}, "model.extra_kernel must be at least 0"),
    (
        {"compression": "low_pass", "reconstruction": "none", "extra_kernel": 1},
        "has no kernel; set model.extra_kernel to 0",
    ),
    ({"compression": "dilated", "memory": 6}, "must hold the 7 slots"),
    ({"leaky_inputs": True, "memory": 0}, "newest slot of memory; set model.memory above 0"),
    ({"sinusoids": 3}, "model.sinusoids must be even"),
    ({"sinusoids": 0}, "model.sinusoids must be even"),
    ({"positions": "rotary", "sinusoids": 64}, "no effect with model.positions rotary"),
    ({"positions": "rotary", "width": 24}, "must be even for rotary positions"),
    ({"head_chunk": 0}, "model.head_chunk must be at least 1"),
    ({"cluster_divisor": 2}, "no effect without model.cutoffs"),
    ({"cutoffs": (5, 3)}, "model.cutoffs must rise"),
    ({"cutoffs": (0, 3)}, "model.cutoffs must rise"),
    ({"cutoffs": (1, 2, 3), "width": 32}, "must leave each cluster a dimension"),
    ({"attention_dropout": -0.1}, "model.attention_dropout must be at least 0"),
    ({"norm": "post", "gate": "gru"}, "set model.norm to pre"),
    ({"memory": 0, "compressed": 0, "empty": "attended"}, "no effect without memory"),
    ({"memory": 0, "compressed": 0, "memory_layers": (1,)}, "no effect without memory"),
    ({"memory_layers": ()}, "must name some of the layers 0 to 11"),
    ({"memory_layers": (3, 2)}, "in order and once each"),
    ({"memory_layers": (2, 12)}, "must name some of the layers 0 to 11"),
    ({"extra_kernel": 2, "memory": 1}, "must hold the 2 slots"),
    ({"backend": "fused"}, "at most 256 dimensions, .* not 1088; set it to auto"),
    ({"backend": "fused", "sinusoids": 64, "dropout": 0.1}, "model.dropout asks; set it to auto"),
    ({"backend": "blocked", "positions": "rotary"}, "is not for rotary positions; set it to auto"),
    (
        {
            "backend": "fused",
            "positions": "rotary",
            "compression": "most_used",
            "reconstruction": "none",
        },
        "model.compression most_used asks for; set it to auto",
    ),
]


@pytest.mark.bad_input("lm.train")
@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=[str(s) for s, _ in REFUSED])
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**settings)


def test_as_much_as_the_positions_reach_is_taken() -> None:
    """A slot of 5 tokens at rate 3 stands for 5 / 2 of them, so 3 slots span 8."""
    lengths = {"segment": 5, "rate": 3, "memory": 7, "compressed": 3, "sinks": 2}
    assert ModelConfig(positions="rotary", max_positions=22, **lengths).span == 22
    assert ModelConfig(positions="rotary_slots", max_positions=17, **lengths).span == 17


def test_range_counts_what_a_slot_really_stands_for() -> None:
    """With 7 tokens and rate 3 each segment becomes 3 slots, 7 / 3 tokens each."""
    config = ModelConfig(layers=2, segment=7, rate=3, memory=10, compressed=6)
    assert config.range == 2 * (10 + 14) + 7
    assert ModelConfig(layers=24, segment=768, memory=768, compressed=1152, rate=3).range == (
        101_376 + 768
    )


@pytest.mark.bad_input("lm.train")
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    "sizes",
    [
        {"layers": 10**9},
        {"layers": 10**9, "memory_layers": (10**9 - 1,)},
        {"layers": 10**8, "width": 2, "heads": 1, "feedforward": 1},
        {"width": 10**10, "heads": 1},
        {"width": 2**62, "heads": 2},
        {"feedforward": 2**62},
        {"rate": 2**44},
        {"heads": 2**50, "head_size": 8},
    ],
)
def test_a_model_that_no_machine_holds_is_refused_before_it_is_made(sizes, device) -> None:
    config = ModelConfig(**sizes)
    with torch.device(device), pytest.raises(ValueError, match=r"^a model of .* layers of width "):
        CompressiveTransformer(config, 256)
