"""Regret is counted from the model's own probabilities, place by place, beside exact windows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data import probes
from data.mixtures import Source, draw, predictions, windowed
from data.options import DataConfig
from data.prepare import prepare
from data.probes import ProbeConfig, spelled
from data.tokenizers.registry import ByteTokenizer
from eval import bayes
from eval.eval_config import ScoreConfig
from eval.regret import ProbeScorer, divergence, read_episodes, regret, table
from lm.inference.inference_config import ScoringConfig
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.scoring import score
from tests.predictors import predictor
from tests.texts import split_of

LENGTHS = ModelConfig(
    layers=1, width=16, heads=2, feedforward=32, segment=4, memory=4, compressed=4, rate=2
)
SOURCE = Source("dirichlet", symbols=3, prior=0.5)
EPISODES = draw(SOURCE, 5, 18, np.random.default_rng(2))


def test_exact_predictions_have_no_regret_and_windows_that_of_what_they_miss() -> None:
    log_p = np.log(predictions(SOURCE, EPISODES)).reshape(-1, 3)
    found = regret(SOURCE, EPISODES, log_p, LENGTHS)
    assert found["total"]["regret"] == pytest.approx(0.0, abs=1e-12)
    assert found["reach"] == {"segment": 4, "memory": 8, "compressed": 16}
    total = found["total"]
    assert total["segment"] > total["memory"] > total["compressed"] > 0
    # Seen is the segment, and the symbol before it, which is the segment's first input.
    log_q = np.log(windowed(SOURCE, EPISODES, 4, 5)).reshape(-1, 3)
    beside = regret(SOURCE, EPISODES, log_q, LENGTHS)
    for part in ("last", "total"):
        assert beside[part]["regret"] == pytest.approx(found[part]["memory"], rel=1e-12)
    assert all(row["memory"] == pytest.approx(row["regret"]) for row in beside["places"])
    assert found["places"][0]["nats"] == pytest.approx(np.log(3))
    assert [row["from"] for row in found["places"]] == list(range(18))


def test_divergence_is_the_mean_extra_cost() -> None:
    p = np.array([[[0.25, 0.75]]])
    q = np.array([[[0.5, 0.4]]])
    expected = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.4)
    assert divergence(p, np.log(q)) == pytest.approx(expected)


def test_the_model_s_own_probabilities_are_noted_where_they_belong() -> None:
    torch.manual_seed(0)
    model = CompressiveTransformer(LENGTHS, 256)
    split = split_of(ByteTokenizer(), [spelled(row).encode() for row in EPISODES])
    settings = ScoringConfig(lanes=2, reset_documents=True)
    scorer = ProbeScorer(predictor(model), split, settings)
    scorer.symbols = 3
    for _ in scorer:
        pass
    chosen = np.take_along_axis(scorer.log_p_NK, EPISODES.reshape(-1, 1), axis=1)
    nats = score(predictor(model), split, settings).nats
    assert -chosen.sum() == pytest.approx(nats, rel=1e-5)
    # All but a little of an untrained model's probability is on other bytes.
    assert np.exp(scorer.log_p_NK).sum(axis=1).max() < 0.5
    assert regret(SOURCE, EPISODES, scorer.log_p_NK, LENGTHS)["total"]["regret"] > 18


def test_the_program(trained_run: Path, tmp_path: Path, capsys) -> None:
    """With a model that knows nothing of the source, from text to table."""
    probes.main(ProbeConfig(length=40, documents=4, held_out=3), tmp_path / "text")
    source, shards = str(tmp_path / "text"), tmp_path / "shards"
    prepare(DataConfig(corpus="text", source=source, shards=shards))
    how, answers = ScoreConfig(lanes=2, reset_documents=True), tmp_path / "text/test.jsonl"
    bayes.main(trained_run, how, answers, shards=shards, json=tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())["bayes"]
    assert found["source"]["task"] == "bernoulli"
    assert found["reach"] == {"segment": 8, "memory": 16, "compressed": 24}
    assert len(found["places"]) == 32
    assert table(found) in capsys.readouterr().out
    with pytest.raises(ValueError, match="give --reset-documents"):
        bayes.main(trained_run, ScoreConfig(), answers, shards=shards)
    with pytest.raises(ValueError, match="is not the text of the split"):
        bayes.main(trained_run, how, tmp_path / "text/validation.jsonl", shards=shards)
    with pytest.raises(ValueError, match=r"make it with python -m data\.probes"):
        bayes.main(trained_run, how, tmp_path / "text/nothing.jsonl", shards=shards)
    whole = answers.read_text().splitlines()
    shorter = json.dumps(json.loads(whole[1]) | {"text": "ab"})
    strange = json.dumps(json.loads(whole[1]) | {"text": "c" * 40})
    for lines in (
        [],
        ['{"text": "abc"}'],
        [whole[0], shorter],
        [whole[0], strange],
        [whole[0][:50]],
    ):
        (tmp_path / "other.jsonl").write_text("\n".join(lines))
        with pytest.raises(ValueError, match="is no probe"):
            bayes.main(trained_run, how, tmp_path / "other.jsonl", shards=shards)


def test_episodes_are_read_as_they_were_drawn(tmp_path: Path) -> None:
    probe = ProbeConfig("switching", symbols=4, length=9, documents=2, held_out=6, hazard=0.1)
    probes.main(probe, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "test.jsonl").open()]
    split = split_of(ByteTokenizer(), [line["text"].encode() for line in lines])
    source, episodes_EN = read_episodes(tmp_path / "test.jsonl", split)
    assert source == probe.source
    assert [spelled(row) for row in episodes_EN] == [line["text"] for line in lines]
