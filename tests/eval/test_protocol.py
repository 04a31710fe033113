"""Units, intervals, and closed forms: numbers that are known beforehand."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.tokenizers.registry import ByteTokenizer
from eval.protocol import (
    all_units,
    characters,
    convert,
    denominators,
    interval,
    trained_with,
)
from lm.inference.inference_config import Lengths, ScoringConfig
from lm.inference.loading import load_run
from lm.inference.predictor import ModelPredictor
from lm.model.flops import training_flops
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.runs.adopted_config import AdoptedConfig, BaseConfig
from lm.scoring import Score, score
from tests.predictors import predictor
from tests.texts import TEXT, split_of, vocabularies

MODEL = ModelConfig(
    layers=1,
    width=16,
    heads=2,
    feedforward=16,
    segment=32,
    memory=32,
    compressed=8,
    rate=4,
    tied=False,
)


def test_units_divide_by_what_they_say() -> None:
    result = Score(100.0, 40, 50, np.array([100.0]))
    sizes = {
        "bits_per_byte": 50,
        "bits_per_character": 48,
        "bits_per_sample": 40,
        "token_perplexity": 40,
        "word_perplexity": 10,
    }
    units = all_units(100.0, sizes, "bytes")
    assert units == {
        "bits_per_byte": pytest.approx(2 / math.log(2)),
        "bits_per_character": pytest.approx(100 / 48 / math.log(2)),
        "token_perplexity": pytest.approx(math.exp(2.5)),
        "word_perplexity": pytest.approx(math.exp(10.0)),
    }
    assert units["bits_per_byte"] == pytest.approx(result.bits_per_byte)
    assert all_units(100.0, sizes, "mulaw") == {"bits_per_sample": pytest.approx(2.5 / math.log(2))}


def test_a_perplexity_beyond_all_numbers_is_left_out() -> None:
    units = all_units(5000.0, {"token_perplexity": 1000, "word_perplexity": 2}, "bytes")
    assert "word_perplexity" not in units and units["token_perplexity"] == math.exp(5)
    assert convert(5000.0, "word_perplexity", 2) == math.inf


def test_published_words_count_where_there_are_any() -> None:
    """The paper's denominators: 3,007,061 and 6,966,499 words of PG-19 (section 4.2)."""
    split = split_of(ByteTokenizer(), [TEXT], unit="word_perplexity")
    official = type(split)(**{**vars_of(split), "denominator_words": 3_007_061})
    official.__dict__.update(tokens=split.tokens, documents=split.documents)
    result = Score(3_007_061 * 3.5, 10, 10, np.array([1.0]))
    assert denominators(split, result)["word_perplexity"] == len(TEXT.split())
    words = denominators(official, result)["word_perplexity"]
    assert convert(result.nats, "word_perplexity", words) == pytest.approx(math.exp(3.5))


def vars_of(split):
    return {name: getattr(split, name) for name in type(split).__dataclass_fields__}


def test_characters_are_counted_whatever_the_tokens() -> None:
    for name, vocabulary in vocabularies().items():
        if name != "mulaw":
            assert characters(split_of(vocabulary, [TEXT])) == len(TEXT.decode())


@pytest.mark.parametrize("kind", ["bytes", "words", "sentencepiece", "mulaw"])
def test_a_uniform_model_costs_the_logarithm_of_the_number_of_symbols(kind: str) -> None:
    vocabulary = vocabularies()[kind]
    model = CompressiveTransformer(MODEL, vocabulary.size)
    with torch.no_grad():
        model.head.weight.zero_()
    split = split_of(vocabulary, [TEXT[:200], TEXT])
    result = score(ModelPredictor(model, vocabulary), split, ScoringConfig(lanes=3))
    expected = result.tokens * math.log(vocabulary.size)
    assert result.tokens == len(split.tokens)
    assert result.nats == pytest.approx(expected, rel=1e-6)
    bits = len(split.tokens) * math.log2(vocabulary.size)
    if kind == "mulaw":
        # Mu-law loses what eight bits cannot hold; text is decoded exactly.
        assert result.bytes is None
        assert result.bits == pytest.approx(bits / result.tokens, rel=1e-6)
    else:
        assert result.bytes == 200 + len(TEXT)
        assert result.bits_per_byte == pytest.approx(bits / result.bytes, rel=1e-6)


def markov_model(transitions_SS: np.ndarray, symbols: bytes) -> CompressiveTransformer:
    """A model whose next-symbol probabilities are those of a Markov chain, by its weights alone:
    the residual stream carries the last symbol, and nothing is added to it.
    """
    model = CompressiveTransformer(MODEL, 256).double()
    count = len(symbols)
    with torch.no_grad():
        model.embedding.weight.zero_()
        for index, symbol in enumerate(symbols):
            model.embedding.weight[symbol, index] = 1.0
        for block in model.layers:
            block.attention.output.weight.zero_()
            nn.init.zeros_(block.feedforward.outer.weight)
        normed = model.norm(model.embedding.scale * torch.eye(MODEL.width).double())
        model.head.weight.zero_()
        model.head.bias.fill_(-40.0)
        high, low = normed[0, 0], normed[0, 1]
        logs = torch.from_numpy(np.log(transitions_SS)).T / (high - low)
        for index, symbol in enumerate(symbols):
            model.head.weight[symbol, :count] = logs[index]
            # What the other dimensions of the normed vector add.
            model.head.bias[symbol] = -low * logs[index].sum()
    return model


def test_a_markov_source_costs_its_entropy() -> None:
    random = np.random.default_rng(0)
    symbols, length = b"abcde", 60_000
    transitions = random.dirichlet(np.full(5, 0.5), size=5) * 0.98 + 0.004
    chain = np.zeros(length, dtype=np.int64)
    limits = transitions.cumsum(axis=1)
    for place, draw in enumerate(random.random(length - 1), start=1):
        chain[place] = min(np.searchsorted(limits[chain[place - 1]], draw), 4)
    text = np.frombuffer(symbols, dtype=np.uint8)[chain].tobytes()
    values, vectors = np.linalg.eig(transitions.T)
    stationary = np.abs(vectors[:, np.argmax(values.real)].real)
    stationary /= stationary.sum()
    entropy = -(stationary[:, None] * transitions * np.log2(transitions)).sum()
    model, config = markov_model(transitions, symbols), ScoringConfig(lanes=20)
    bits = score(predictor(model), split_of(ByteTokenizer(), [text]), config).bits_per_byte
    assert entropy > 0.5
    # The standard error of 60,000 draws is about 0.005 bits.
    assert bits == pytest.approx(entropy, abs=0.02)
    short = score(predictor(model), split_of(ByteTokenizer(), [text[:700]]), config).bits_per_byte
    assert abs(short - entropy) > abs(bits - entropy)


def test_the_interval_covers_what_other_documents_would_have_given() -> None:
    """Of many splits drawn from one source, about 95 % have an interval that holds the truth."""
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        lengths = random.integers(5, 40, size=30)
        split = split_of(ByteTokenizer(), [b"x" * int(n) for n in lengths])
        nats = np.array([random.exponential(1.2, n).sum() for n in lengths])
        made = Score(nats.sum(), int(lengths.sum()), int(lengths.sum()), nats)
        low, high = interval(made, split, "bits_per_byte", made.bytes, seed=trial)
        assert low < convert(made.nats, "bits_per_byte", made.bytes) < high
        covered += low < 1.2 / math.log(2) < high
    assert 50 <= covered <= 60


def test_intervals_are_reproducible_and_need_documents() -> None:
    split = split_of(ByteTokenizer(), [b"a b c", b"", b"d e", b"f g h i"])
    made = Score(30.0, 15, 15, np.array([10.0, 0.0, 4.0, 16.0]))
    first = interval(made, split, "word_perplexity", 9)
    assert first == interval(made, split, "word_perplexity", 9)
    assert first[0] < math.exp(30 / 9) < first[1]
    # A word of very many nats: some resamples are beyond all floating-point numbers.
    long = Score(1630.0, 15, 15, np.array([10.0, 0.0, 1620.0, 0.0]))
    assert math.isfinite(convert(long.nats, "word_perplexity", 9))
    assert interval(long, split, "word_perplexity", 9) == []
    one = split_of(ByteTokenizer(), [b"", b"abc"])
    assert interval(Score(1.0, 3, 3, np.array([0.0, 1.0])), one, "bits_per_byte", 3) == []


def test_what_training_cost_does_not_depend_on_how_a_run_is_read(trained_run: Path) -> None:
    lengths = (None, Lengths(memory=20), Lengths(segment=4), Lengths(compressed=0))
    costs = {trained_with(load_run(trained_run, lengths=each)) for each in lengths}
    loaded = load_run(trained_run)
    own = training_flops(loaded.config.model, loaded.vocabulary.size, loaded.lanes)
    assert costs == {own.total}
    shape = BaseConfig("m", "LlamaForCausalLM", 64)
    adopted = replace(loaded, config=AdoptedConfig(loaded.config.model, shape))
    assert trained_with(adopted) is None
