"""The scorer against a naive pass, and against itself: other lanes, ranks, cuts, interruptions."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.shards import Shards
from data.tokenizers.registry import ByteTokenizer
from data.tokenizers.words import WordTokenizer
from lm.inference.inference_config import ScoringConfig
from lm.model.incremental import Reader
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.scoring import Scorer, score
from tests.predictors import predictor
from tests.texts import TEXT, split_of

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
    result = score(predictor(model), split, ScoringConfig(lanes=1))
    assert result.tokens == result.bytes == split.bytes == len(tokens)
    assert result.nats == pytest.approx(nats, rel=1e-6)


@pytest.mark.parametrize("lanes", [2, 5, 8])
def test_does_not_depend_on_lanes_when_the_warm_up_covers_the_range(
    shards: Shards, lanes: int
) -> None:
    model, split = build(MODEL).double(), shards.split("test")
    one = score(predictor(model), split, ScoringConfig(lanes=1))
    many = score(
        predictor(model),
        split,
        ScoringConfig(lanes=lanes, warmup=MODEL.range),
    )
    assert many.tokens == one.tokens
    assert many.nats == pytest.approx(one.nats, rel=1e-6)
    cold = score(predictor(model), split, ScoringConfig(lanes=lanes, warmup=0))
    assert abs(cold.nats - one.nats) > 1e-5 * one.nats


def test_lanes_of_two_ranks_add_up(shards: Shards) -> None:
    model, split, config = build(MODEL), shards.split("test"), ScoringConfig(lanes=4)
    whole = score(predictor(model), split, config)
    halves = [
        score(predictor(model), split, config, rows=rows) for rows in (slice(0, 2), slice(2, 4))
    ]
    assert sum(half.tokens for half in halves) == whole.tokens
    assert sum(half.nats for half in halves) == pytest.approx(whole.nats, rel=1e-6)
    documents = halves[0].document_nats + halves[1].document_nats
    np.testing.assert_allclose(documents, whole.document_nats, rtol=1e-6)
    other = torch.tensor([halves[1].tokens, halves[1].bytes, *halves[1].document_nats])
    scorer = Scorer(predictor(model), split, config, rows=slice(0, 2))
    for _ in scorer:
        pass
    assert scorer.result(lambda sums: sums + other) == whole


def test_the_mode_of_the_model_is_restored(shards: Shards) -> None:
    model = build(replace(MODEL, dropout=0.5)).train()
    first = score(
        predictor(model),
        shards.split("test"),
        ScoringConfig(lanes=2),
        limit=3,
    )
    assert model.training
    assert first == score(
        predictor(model),
        shards.split("test"),
        ScoringConfig(lanes=2),
        limit=3,
    )


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"memory": 5, "segment": 6, "rate": 4},
        {"positions": "rotary"},
        {"empty": "attended"},
        {"memory_layers": (1,)},
        {"compressed": 0},
        {"compression": "most_used", "reconstruction": "none"},
    ],
)
@pytest.mark.parametrize("reset", [False, True])
def test_kept_keys_change_nothing(shards: Shards, change: dict[str, Any], reset: bool) -> None:
    model, split = build(replace(MODEL, **change)).double(), shards.split("test")
    config = ScoringConfig(lanes=3, reset_documents=reset)
    costs = []
    for keep in (True, False):
        nats = np.full(len(split.tokens), np.nan)
        scorer = Scorer(predictor(model, keep), split, config, token_nats=nats)
        assert scorer.state.memory.kept == keep
        for _ in scorer:
            pass
        costs.append(nats)
    np.testing.assert_allclose(costs[0], costs[1], rtol=1e-9)


@pytest.mark.parametrize("reset", [False, True])
def test_every_token_costs_what_the_sums_say(reset: bool) -> None:
    """Token by token, document by document, and as one sum, whatever lane read it."""
    model = build(MODEL)
    split = split_of(ByteTokenizer(), [TEXT[:100], b"", TEXT[:333], TEXT[:41], b""])
    nats = np.full(len(split.tokens), np.nan, dtype=np.float32)
    scorer = Scorer(
        predictor(model),
        split,
        ScoringConfig(lanes=4, reset_documents=reset),
        token_nats=nats,
    )
    for _ in scorer:
        pass
    result = scorer.result()
    assert not np.isnan(nats).any()
    assert result.nats == pytest.approx(nats.sum(dtype=np.float64), rel=1e-6)
    documents = split.documents
    for begin, tokens, cost in zip(
        documents["offset"], documents["tokens"], result.document_nats, strict=True
    ):
        expected = nats[begin : begin + tokens].sum(dtype=np.float64)
        assert cost == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("keep", [True, False])
def test_a_pass_goes_on_where_it_stopped(shards: Shards, keep: bool) -> None:
    model, split, config = build(MODEL), shards.split("test"), ScoringConfig(lanes=3)
    whole = Scorer(predictor(model, keep), split, config)
    for _ in whole:
        pass
    first = Scorer(predictor(model, keep), split, config)
    for _ in range(len(first) // 2):
        first.advance()
    state = first.kept()
    first.advance()
    second = Scorer(predictor(model, keep), split, config)
    second.load(state)
    assert second.step == len(second) // 2
    for _ in second:
        pass
    assert second.result() == whole.result()
    np.testing.assert_array_equal(second.document_nats, whole.document_nats)


def test_cuts_do_not_matter_while_memory_moves_at_the_same_places(shards: Shards) -> None:
    """Whole segments, and a few tokens at a time: the same cost of every token."""
    model, split = build(MODEL).double(), shards.split("test")
    nats = np.full(len(split.tokens), np.nan)
    scorer = Scorer(predictor(model), split, ScoringConfig(lanes=1), token_nats=nats)
    for _ in scorer:
        pass
    tokens = torch.from_numpy(split.tokens.astype("int64"))
    inputs = torch.cat([torch.tensor([split.vocabulary.start]), tokens[:-1]])[None]
    reader = Reader(model.eval(), model.empty_memory(1))
    begin, place = 0, 0
    with torch.no_grad():
        while begin < len(tokens):
            count = 1 + place % 5
            place += 1
            hidden = reader.read(inputs[:, begin : begin + count])
            targets = tokens[begin : begin + count]
            costs = F.cross_entropy(model.head(hidden)[0], targets, reduction="none")
            np.testing.assert_allclose(nats[begin : begin + count], costs, rtol=1e-6)
            begin += count


def test_another_vocabulary_is_refused(shards: Shards) -> None:
    model = CompressiveTransformer(MODEL, 300)
    with pytest.raises(ValueError, match="256 tokens and the model one of 300"):
        predictor(model)
    letters = split_of(WordTokenizer.build(Counter([b"a", b"b"])), [b"a b a\n"])
    with pytest.raises(ValueError, match="tokens and the model one of 256"):
        Scorer(predictor(build(MODEL)), letters, ScoringConfig())


@pytest.mark.gpu
def test_a_gpu_counts_what_the_cpu_counts(shards: Shards) -> None:
    """Costs are counted while the next segment is computed, and none is lost or counted twice."""
    model, split, config = build(MODEL), shards.split("test"), ScoringConfig(lanes=3)
    nats = [np.full(len(split.tokens), np.nan, dtype=np.float32) for _ in range(2)]
    results = []
    for device, costs in zip(("cpu", "cuda"), nats, strict=True):
        scorer = Scorer(predictor(model.to(device)), split, config, token_nats=costs)
        for _ in scorer:
            pass
        results.append(scorer.result())
    assert results[0].tokens == results[1].tokens
    np.testing.assert_allclose(nats[1], nats[0], rtol=1e-3, atol=1e-3)
    assert results[1].nats == pytest.approx(results[0].nats, rel=1e-4)
