"""The scorer against a naive pass, a closed form, and itself with other lanes."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from data.shards import Shards
from lm.model import CompressiveTransformer, ModelConfig
from lm.scoring import Score, ScoringConfig, score

MODEL = ModelConfig(
    layers=2, width=16, heads=2, feedforward=32, segment=8, memory=8, compressed=4, rate=2
)


def build(config: ModelConfig) -> CompressiveTransformer:
    torch.manual_seed(0)
    return CompressiveTransformer(config, 256)


def test_equals_one_naive_pass_over_the_split(shards: Shards) -> None:
    """Every token once, the first one and the tail included."""
    model, split = build(MODEL), shards.split("test")
    tokens = torch.from_numpy(split.tokens.astype("int64"))
    inputs = torch.cat([torch.tensor([split.vocabulary.start]), tokens[:-1]])
    memory, nats = model.empty_memory(1), 0.0
    assert len(tokens) % MODEL.segment
    for start in range(0, len(tokens), MODEL.segment):
        part = inputs[start : start + MODEL.segment]
        padded = F.pad(part, (0, MODEL.segment - len(part)))
        with torch.no_grad():
            output = model(padded[None], memory)
        memory = output.memory
        logits = output.predictions[0, : len(part)]
        nats += F.cross_entropy(
            logits, tokens[start : start + MODEL.segment], reduction="sum"
        ).item()
    result = score(model, split, ScoringConfig(lanes=1))
    assert result.tokens == result.bytes == split.bytes == len(tokens)
    assert result.nats == pytest.approx(nats, rel=1e-6)


def test_units_divide_by_what_they_say() -> None:
    result = Score(nats=100.0, tokens=40, bytes=50)
    assert result.value("bits_per_byte", 10) == result.bits_per_byte
    assert result.bits_per_byte == pytest.approx(2 / math.log(2))
    assert result.value("bits_per_sample", 10) == pytest.approx(2.5 / math.log(2))
    assert result.value("word_perplexity", 10) == pytest.approx(math.exp(10.0))


@pytest.mark.parametrize("lanes", [2, 5, 8])
def test_does_not_depend_on_lanes_when_the_warm_up_covers_the_range(
    shards: Shards, lanes: int
) -> None:
    model, split = build(MODEL).double(), shards.split("test")
    one = score(model, split, ScoringConfig(lanes=1))
    many = score(model, split, ScoringConfig(lanes=lanes, warmup=MODEL.range))
    assert many.tokens == one.tokens
    assert many.nats == pytest.approx(one.nats, rel=1e-6)
    cold = score(model, split, ScoringConfig(lanes=lanes, warmup=0))
    assert abs(cold.nats - one.nats) > 1e-5 * one.nats


def test_a_uniform_model_costs_eight_bits_a_byte(shards: Shards) -> None:
    model = build(replace(MODEL, tied=False))
    with torch.no_grad():
        model.head.weight.zero_()
    result = score(model, shards.split("validation"), ScoringConfig(lanes=3))
    assert result.bits_per_byte == pytest.approx(8.0, rel=1e-6)
    assert result.nats == pytest.approx(result.tokens * math.log(256), rel=1e-6)


def test_lanes_of_two_ranks_add_up(shards: Shards) -> None:
    model, split, config = build(MODEL), shards.split("test"), ScoringConfig(lanes=4)
    whole = score(model, split, config)
    halves = [score(model, split, config, rows=rows) for rows in (slice(0, 2), slice(2, 4))]
    assert sum(half.tokens for half in halves) == whole.tokens
    assert sum(half.nats for half in halves) == pytest.approx(whole.nats, rel=1e-6)


def test_the_mode_of_the_model_is_restored(shards: Shards) -> None:
    model = build(replace(MODEL, dropout=0.5)).train()
    first = score(model, shards.split("test"), ScoringConfig(lanes=2), limit=3)
    assert model.training
    assert first == score(model, shards.split("test"), ScoringConfig(lanes=2), limit=3)
