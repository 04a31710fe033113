"""Dynamic evaluation against a loop, and what it must never do: learn before it has scored."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.tokenizers.registry import ByteTokenizer
from eval import dynamic
from eval.adapting import DynamicScorer
from eval.eval_config import DynamicConfig
from eval.results import Dynamic, read_result
from lm.inference.inference_config import ScoringConfig
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.scoring import score
from tests.predictors import predictor
from tests.texts import TEXT, split_of

MODEL = ModelConfig(
    layers=2, width=16, heads=2, feedforward=32, segment=8, memory=8, compressed=6, rate=2
)
SPLIT = split_of(ByteTokenizer(), [TEXT[:100], TEXT[100:203]])


@pytest.fixture
def model() -> CompressiveTransformer:
    torch.manual_seed(0)
    return CompressiveTransformer(MODEL, 256).double()


def costs(model: CompressiveTransformer, config: DynamicConfig, split=SPLIT) -> np.ndarray:
    scorer = DynamicScorer(model, split, config)
    scorer.token_nats = np.full(len(split.tokens), np.nan)
    for _ in scorer:
        pass
    return scorer.token_nats


def test_equals_a_loop(model: CompressiveTransformer) -> None:
    """Plain gradient steps of every second segment's sum, clipped, and drawn back."""
    before = [p.detach().clone() for p in model.parameters()]
    found = costs(model, DynamicConfig(lrs=(0.5,), optimizer="sgd", every=2, decay=0.1, clip=0.3))
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value) and parameter.grad is None
    tokens = torch.from_numpy(SPLIT.tokens.astype("int64"))
    inputs = torch.cat([torch.tensor([SPLIT.vocabulary.start]), tokens[:-1]])
    memory, expected, loss = model.empty_memory(1), [], torch.zeros(())
    for number, start in enumerate(range(0, len(tokens), 8), start=1):
        part, targets = inputs[start : start + 8], tokens[start : start + 8]
        output = model.eval()(F.pad(part, (0, 8 - len(part)), value=10)[None], memory)
        memory = output.memory.detach()
        nats = F.cross_entropy(output.predictions[0, : len(part)], targets, reduction="none")
        expected += nats.tolist()
        loss = loss + nats.mean()
        if number % 2 == 0:
            parameters = list(model.parameters())
            grads = torch.autograd.grad(loss, parameters, allow_unused=True)
            norm = math.sqrt(sum(float(g.square().sum()) for g in grads if g is not None))
            with torch.no_grad():
                for parameter, grad, trained in zip(parameters, grads, before, strict=True):
                    if grad is not None:
                        parameter -= 0.5 * grad * min(1.0, 0.3 / norm)
                    parameter += 0.1 * (trained - parameter)
            loss = torch.zeros(())
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("lanes", [1, 2])
def test_without_movement_it_is_the_score(model: CompressiveTransformer, lanes: int) -> None:
    plain = score(predictor(model), SPLIT, ScoringConfig(lanes=lanes)).nats
    for config in (
        DynamicConfig(lanes=lanes, lrs=(0.0,)),
        DynamicConfig(lanes=lanes, lrs=(0.1,), decay=1.0),
        DynamicConfig(lanes=lanes, lrs=(0.1,), every=1000),
    ):
        assert costs(model, config).sum() == pytest.approx(plain, rel=1e-9)
    moving = costs(model, DynamicConfig(lanes=lanes, lrs=(1e-3,))).sum()
    assert moving < plain - 1.0


def test_nothing_is_learnt_from_text_before_it_is_scored(model: CompressiveTransformer) -> None:
    other = split_of(ByteTokenizer(), [TEXT[:100], TEXT[100:160] + b"\xff" * 43])
    config = DynamicConfig(lrs=(1e-2,))
    first, second = costs(model, config), costs(model, config, other)
    np.testing.assert_array_equal(first[:160], second[:160])
    assert (first[160:] != second[160:]).all()


def test_lanes_do_not_learn_from_their_warm_up(model: CompressiveTransformer) -> None:
    """Where the warm-up is all that has been read, every weight is as trained."""
    config = DynamicConfig(lanes=2, lrs=(1e-2,), warmup=48)
    scorer = DynamicScorer(model, SPLIT, config)
    scorer.rows = slice(1, 2)
    scorer.memory = model.empty_memory(1)
    for _ in range(6):
        scorer.advance()
    for now, before in zip(scorer.parameters, scorer.trained, strict=True):
        assert torch.equal(now, before)
    scorer.advance()
    assert any(
        not torch.equal(now, before)
        for now, before in zip(scorer.parameters, scorer.trained, strict=True)
    )


def test_the_program_reports_both(trained_run: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "dynamic.json"
    dynamic.main(trained_run, DynamicConfig(lanes=2, lrs=(0.0, 1e-3)), json=file)
    result = read_result(file, Dynamic)
    fixed, still, moving = result["dynamic"]["passes"]
    assert result["value"] == fixed["value"] == pytest.approx(still["value"], rel=1e-6)
    assert fixed["lr"] is None and moving["lr"] == 1e-3 and moving["value"] < fixed["value"]
    assert moving["curve"][-1]["tokens"] == result["protocol"]["tokens"]
    shown = capsys.readouterr().out
    assert "fixed weights" in shown and f"{moving['value']:.4f}" in shown
    dynamic.main(trained_run, DynamicConfig(lanes=2, limit=5), split="train", json=file)
    result = read_result(file, Dynamic)
    assert result["protocol"]["tokens"] == 8 * (5 + 3)
    assert result["interval"]["bounds"] == []
    assert result["protocol"]["limit"] == 5 and len(result["dynamic"]["passes"]) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lrs": ()}, "some rates"),
        ({"lrs": (-1.0,)}, "lrs must be a list in which each is at least 0"),
        ({"every": 0}, "at least 1"),
        ({"decay": 2.0}, "decay must be at most 1"),
    ],
)
def test_mistakes(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(DynamicConfig(), **change)
