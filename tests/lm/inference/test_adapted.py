"""Cache, kNN-LM and MbPA against loops and autograd; and that no prediction sees its future."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from data.tokenizers.registry import ByteTokenizer
from lm.inference.adapted import AdaptedPredictor, AdaptedState
from lm.inference.inference_config import LookupConfig, SamplingConfig, ScoringConfig
from lm.inference.predictor import ModelPredictor
from lm.inference.session import Session, Writing
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.scoring import Scorer, score
from tests.predictors import predictor
from tests.texts import TEXT, split_of

MODEL = ModelConfig(
    layers=2, width=16, heads=2, feedforward=32, segment=8, memory=8, compressed=6, rate=2
)
CACHE = LookupConfig("cache", capacity=13, sharpness=4.0, share=0.3)
KNN = LookupConfig("knn", capacity=13, neighbours=3, temperature=0.7, share=0.3)
MBPA = LookupConfig("mbpa", capacity=13, neighbours=3, softness=0.2, rate=5.0)
CONFIGS = {
    "cache": CACHE,
    "knn": KNN,
    "mbpa": MBPA,
    "mbpa of 4 steps": replace(MBPA, steps=4, decay=0.1),
    "mbpa by exponential": replace(MBPA, kernel="exponential"),
    "mbpa and cache": LookupConfig(
        "mbpa+cache", 13, 3, sharpness=4.0, share=0.3, softness=0.2, rate=5.0
    ),
    "mbpa and knn": LookupConfig(
        "mbpa+knn", 13, 3, temperature=0.7, share=0.3, softness=0.2, rate=5.0
    ),
}


def model_of(config: ModelConfig = MODEL) -> CompressiveTransformer:
    torch.manual_seed(0)
    model = CompressiveTransformer(config, 256).double().eval()
    if config.head_bias:
        torch.nn.init.normal_(model.head.bias, std=0.1)
    return model


@pytest.fixture(scope="module")
def model() -> CompressiveTransformer:
    return model_of()


def slow(model: CompressiveTransformer, tokens_T: Tensor, config: LookupConfig) -> Tensor:
    """Probabilities [T, V] after each token of one text, by lists and autograd."""
    plain, config = predictor(model), config.settled()
    hidden, _ = plain.read(tokens_T[None], plain.begin(1))
    width, past, rows = hidden.shape[-1], [], []
    for place, query in enumerate(hidden[0]):
        if place:
            past.append((hidden[0, place - 1], int(tokens_T[place])))
        seen = past[-config.capacity :]
        order = sorted(seen, key=lambda entry: float((query - entry[0]).square().sum()))
        near = order[: config.neighbours or 0]
        squares = [float((query - key).square().sum()) / width for key, _ in near]
        weight = model.head.weight.detach().clone().requires_grad_()
        has_bias = model.head.bias is not None
        trained = [weight.detach()]
        parameters = [weight]
        if has_bias:
            bias = model.head.bias.detach().clone().requires_grad_()
            trained, parameters = [*trained, bias.detach()], [weight, bias]
        trained = [each.clone() for each in trained]
        methods = config.method.split("+")
        for _ in range(config.steps or 0 if "mbpa" in methods and near else 0):
            if config.kernel == "inverse":
                raw = [1 / (config.softness + square) for square in squares]
            else:
                raw = [math.exp(-square / config.softness) for square in squares]
            loss = sum(
                part
                / sum(raw)
                * F.cross_entropy(F.linear(key, *parameters)[None], torch.tensor([value]))
                for part, (key, value) in zip(raw, near, strict=True)
            )
            grads = torch.autograd.grad(loss, parameters)
            with torch.no_grad():
                for each, grad, before in zip(parameters, grads, trained, strict=True):
                    each -= config.rate / width * grad + config.decay * (each - before)
        found = F.linear(query, *parameters).detach().softmax(dim=-1)
        if "knn" in methods and near:
            parts = [math.exp(-square / config.temperature) for square in squares]
            chosen = near
        elif "cache" in methods and seen:
            parts = [math.exp(config.sharpness * float(query @ k) / width) for k, _ in seen]
            chosen = seen
        else:
            rows.append(found)
            continue
        other = torch.zeros_like(found)
        for part, (_, value) in zip(parts, chosen, strict=True):
            other[value] += part / sum(parts)
        assert float(other.sum()) == pytest.approx(1)
        rows.append((1 - config.share) * found + config.share * other)
    return torch.stack(rows)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("head_bias", [True, False])
def test_equals_a_loop_with_autograd(name: str, head_bias: bool) -> None:
    model = model_of(replace(MODEL, head_bias=head_bias))
    tokens = torch.tensor(list(b"the long memory of the long book "[:32]))
    adapted = AdaptedPredictor(predictor(model), CONFIGS[name])
    logits, _ = adapted.read(tokens[None], adapted.begin(1))
    expected = slow(model, tokens, CONFIGS[name])
    torch.testing.assert_close(logits[0].softmax(-1), expected, rtol=1e-9, atol=1e-13)
    plain = predictor(model)
    without = plain.logits(plain.read(tokens[None], plain.begin(1))[0])
    assert (logits[0, 2:] - without[0, 2:]).abs().amax(dim=-1).min() > 1e-4


@pytest.mark.parametrize("name", CONFIGS)
def test_however_the_text_is_cut(model: CompressiveTransformer, name: str) -> None:
    """Whole segments, single tokens, prompts of several segments, lanes that read different
    numbers: the same probabilities."""
    adapted = AdaptedPredictor(predictor(model), CONFIGS[name])
    tokens = torch.tensor([list(TEXT[:40]), list(TEXT[7:47])])
    whole, _ = adapted.read(tokens, adapted.begin(2))
    state, single = adapted.begin(2), []
    for place in range(40):
        logits, state = adapted.read(tokens[:, place : place + 1], state)
        single.append(logits)
    torch.testing.assert_close(torch.cat(single, dim=1), whole)
    state, done = adapted.begin(2), [0, 0]
    for counts in ([3, 0], [1, 9], [0, 2], [13, 5], [23, 24]):
        size = max(counts)
        part = torch.zeros(2, size, dtype=torch.int64)
        for lane, count in enumerate(counts):
            part[lane, :count] = tokens[lane, done[lane] : done[lane] + count]
        logits, state = adapted.read(part, state, counts)
        for lane, count in enumerate(counts):
            right = whole[lane, done[lane] : done[lane] + count]
            torch.testing.assert_close(logits[lane, :count], right)
            done[lane] += count


def costs(adapted: AdaptedPredictor | ModelPredictor, split: Any, lanes: int, **how: Any) -> Any:
    scorer = Scorer(adapted, split, ScoringConfig(lanes=lanes, **how))
    scorer.token_nats = np.full(len(split.tokens), np.nan)
    for _ in scorer:
        pass
    return scorer.token_nats


@pytest.mark.parametrize("name", CONFIGS)
def test_no_cost_depends_on_what_follows(model: CompressiveTransformer, name: str) -> None:
    """Other tokens from a place on: all costs before it are the same to the bit."""
    adapted = AdaptedPredictor(predictor(model), CONFIGS[name])
    first = costs(adapted, split_of(ByteTokenizer(), [TEXT[:203]]), 1)
    for place in (93, 160):
        other = split_of(ByteTokenizer(), [TEXT[:place] + b"\xff" * (203 - place)])
        second = costs(adapted, other, 1)
        np.testing.assert_array_equal(first[:place], second[:place])
        assert (first[place:] != second[place:]).any()


@pytest.mark.parametrize("name", ["cache", "mbpa and knn"])
def test_the_score_does_not_depend_on_lanes(model: CompressiveTransformer, name: str) -> None:
    adapted = AdaptedPredictor(predictor(model), CONFIGS[name])
    split = split_of(ByteTokenizer(), [TEXT[:100], TEXT[100:333]])
    one = costs(adapted, split, 1)
    # Two layers reach back further than the memories of one span.
    warmup = 4 * predictor(model).warmup + adapted.capacity
    for lanes in (2, 5):
        several = costs(adapted, split, lanes, warmup=warmup)
        np.testing.assert_allclose(several, one, rtol=1e-9)
    reset = costs(adapted, split, 1, reset_documents=True)
    alone = costs(adapted, split_of(ByteTokenizer(), [TEXT[100:333]]), 1)
    np.testing.assert_allclose(reset[100:], alone, rtol=1e-9)


@pytest.mark.parametrize("change", [{"rate": 0.0}, {"rate": 0.0, "steps": 3}])
def test_without_a_rate_it_is_the_model(model: CompressiveTransformer, change: Any) -> None:
    tokens = torch.tensor([list(TEXT[:32])])
    plain = predictor(model)
    expected = plain.logits(plain.read(tokens, plain.begin(1))[0])
    adapted = AdaptedPredictor(plain, replace(MBPA, **change))
    assert torch.equal(adapted.read(tokens, adapted.begin(1))[0], expected)


@pytest.mark.parametrize("name", ["cache", "mbpa and knn"])
def test_a_score_goes_on_where_it_stopped(model: CompressiveTransformer, name: str) -> None:
    split = split_of(ByteTokenizer(), [TEXT[:300]])
    adapted = AdaptedPredictor(predictor(model), CONFIGS[name])
    whole = score(adapted, split, ScoringConfig(lanes=2))
    first, second = (Scorer(adapted, split, ScoringConfig(lanes=2)) for _ in range(2))
    for _ in range(len(first) // 2):
        first.advance()
    second.load(first.kept())
    for _ in second:
        pass
    assert second.result() == whole
    kept = first.kept()
    del kept["state.store.values"]
    with pytest.raises(ValueError, match="lacks values"):
        second.load(kept)
    del kept["state.last"]
    with pytest.raises(ValueError, match="not complete"):
        second.load(kept)


def test_texts_are_written_side_by_side(model: CompressiveTransformer) -> None:
    """A text does not depend on its neighbours, nor on copies that went on from the same place."""
    adapted = AdaptedPredictor(predictor(model), CONFIGS["mbpa and cache"])
    prompts = [np.frombuffer(TEXT[:size], np.uint8) for size in (30, 11)]
    both = Session.begin(adapted, 2)
    both.read(prompts)
    how = Writing(SamplingConfig(temperature=0.8), 20, seeds=[5, 6, 7, 8])
    texts = both.repeat(2).write(how)
    assert texts[0] != texts[1]
    for lane, prompt in enumerate(prompts):
        alone: Session[AdaptedState] = Session.begin(adapted, 1)
        alone.read([prompt])
        seeds = how.seeds[2 * lane : 2 * lane + 2]
        assert alone.repeat(2).write(replace(how, seeds=seeds)) == texts[2 * lane : 2 * lane + 2]


def test_half_precision(model: CompressiveTransformer) -> None:
    """States are kept and compared in float32, and the head reads what it was made for."""
    half = model_of().bfloat16()
    adapted = AdaptedPredictor(predictor(half), CONFIGS["mbpa and cache"])
    tokens = torch.tensor([list(TEXT[:16])])
    logits, state = adapted.read(tokens, adapted.begin(1))
    assert logits.dtype == torch.float32 and state.store.keys_BRD.dtype == torch.float32
    exact = AdaptedPredictor(predictor(model), CONFIGS["mbpa and cache"])
    expected = exact.read(tokens, exact.begin(1))[0]
    torch.testing.assert_close(
        logits.softmax(-1).double(), expected.softmax(-1), rtol=0.5, atol=0.02
    )


def test_an_adaptive_softmax_is_refused_by_mbpa_alone() -> None:
    model = model_of(replace(MODEL, cutoffs=(20, 90)))
    with pytest.raises(ValueError, match="one matrix, which this model has not"):
        AdaptedPredictor(predictor(model), MBPA)
    split = split_of(ByteTokenizer(), [TEXT[:100]])
    plain = score(predictor(model), split, ScoringConfig(lanes=1)).nats
    assert (
        score(AdaptedPredictor(predictor(model), CACHE), split, ScoringConfig(lanes=1)).nats < plain
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"capacity": 5}, "capacity has no effect without a method"),
        ({"method": "cache", "neighbours": 5}, "neighbours has no effect with method cache"),
        ({"method": "knn", "rate": 0.1}, "rate has no effect with method knn"),
        ({"method": "mbpa", "share": 0.1}, "share has no effect with method mbpa"),
        ({"method": "mbpa", "decay": 0.1}, "decay has no effect on a single step"),
        ({"method": "cache", "share": 1.0}, "share must be"),
        ({"method": "cache", "sharpness": 0.0}, "sharpness must be"),
        ({"method": "mbpa", "capacity": 0}, "capacity must be at least 1"),
        ({"method": "mbpa", "softness": 1e-45}, "softness must be at least 1e-30"),
        ({"method": "knn", "temperature": 1e-45}, "temperature must be at least 1e-30"),
    ],
)
def test_mistakes(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LookupConfig(**given)
