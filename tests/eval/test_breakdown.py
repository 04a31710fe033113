"""Breakdowns add up to the score they break down, and ablations do what they say."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.shards import Shards
from data.tokenizers.registry import ByteTokenizer
from eval import breakdown
from eval.ablation import CHANGES, AblatedPredictor, foreign
from eval.eval_config import ABLATIONS, BreakdownConfig
from eval.in_context import context_lines, in_context
from eval.parts import by_position
from eval.results import Breakdown, read_result
from eval.tables import breakdowns
from lm.inference.inference_config import ScoringConfig
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.scoring import Scorer, score
from tests.predictors import predictor
from tests.texts import TEXT, split_of

MODEL = ModelConfig(
    layers=2, width=16, heads=2, feedforward=32, segment=8, memory=8, compressed=6, rate=2
)


def build(config: ModelConfig = MODEL) -> CompressiveTransformer:
    torch.manual_seed(0)
    return CompressiveTransformer(config, 256).double().eval()


def test_breakdowns_add_up(
    trained_run: Path, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    breakdown.main(trained_run, BreakdownConfig(lanes=2, edges=(2000, 100)), out=tmp_path)
    result = read_result(tmp_path / "breakdown-validation.json", Breakdown)
    split = shards.split("validation")
    assert sum(b["words"] for b in result["frequency"]) == split.words
    nats = sum(b["nats"] for b in result["frequency"])
    assert nats == pytest.approx(result["nats"], rel=1e-5)
    assert sum(p["bytes"] for p in result["position"]) == split.bytes
    bits = sum(p["bytes"] * p["bits_per_byte"] for p in result["position"])
    assert bits * math.log(2) == pytest.approx(result["nats"], rel=1e-5)
    assert [p["to"] for p in result["context"]] == [p["to"] for p in result["position"]]
    assert result["context"][0]["gain"] == 0
    for layer in range(2):
        stores = result["attention"]["stores"].values()
        assert sum(store[layer] for store in stores) == pytest.approx(1.0)
        ages = result["attention"]["ages"]
        assert sum(ages["memory"][layer]) == pytest.approx(
            result["attention"]["stores"]["memory"][layer]
        )
    assert len(result["attention"]["ages"]["segment"][0]) == 6
    assert len(result["reconstruction"]) == 2 and min(result["reconstruction"]) > 0
    assert len(result["reconstruction_relative"]) == 2
    assert all(0 < error < 100 for error in result["reconstruction_relative"])
    assert result["ablation"].keys() == {*CHANGES, "from_another_document"}
    assert result["ablation"]["intact"] == pytest.approx(result["value"], rel=1e-5)
    with (tmp_path / "documents-validation.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == split.names
    assert sum(float(row["nats"]) for row in rows) == pytest.approx(result["nats"], rel=1e-5)
    assert float(rows[0]["bits_per_byte"]) == pytest.approx(result["value"], rel=1e-5)
    shown = capsys.readouterr().out
    wanted = ("below 100", "compressed", "exchanged", "reconstruction error by layer")
    for name in (*wanted, "what reading on is worth"):
        assert name in shown
    written = json.loads((tmp_path / "breakdown-validation.json").read_text())
    assert written.items() >= result.items() and written.keys() - result.keys() == {"sha256"}


def test_positions_count_from_each_documents_beginning() -> None:
    split = split_of(ByteTokenizer(), [b"a" * 5, b"", b"b" * 3, b"c" * 9])
    nats = np.concatenate([np.arange(1, 6), np.arange(1, 4), np.arange(1, 10)]) * math.log(2)
    found = by_position(split, nats, 2)
    assert [(p["from"], p["to"], p["documents"], p["bytes"]) for p in found] == [
        (0, 2, 3, 6),
        (2, 4, 3, 5),
        (4, 8, 2, 5),
        (8, 16, 1, 1),
    ]
    assert [p["bits_per_byte"] for p in found] == pytest.approx(
        [1.5, (3 + 4 + 3 + 3 + 4) / 5, (5 + 5 + 6 + 7 + 8) / 5, 9]
    )


def test_a_place_is_compared_with_the_beginning_of_the_documents_that_reach_it() -> None:
    split = split_of(ByteTokenizer(), [b"a" * 5, b"", b"b" * 3, b"c" * 9])
    bits = np.concatenate([np.arange(1, 6), 10 * np.arange(1, 4), np.arange(1, 10)])
    found = in_context(split, bits * math.log(2), 2)
    assert [(p["from"], p["to"], p["documents"]) for p in found] == [
        (0, 2, 3),
        (2, 4, 3),
        (4, 8, 2),
        (8, 16, 1),
    ]
    costs = [36 / 6, (3 + 4 + 30 + 3 + 4) / 5, (5 + 5 + 6 + 7 + 8) / 5, 9]
    assert [p["bits_per_byte"] for p in found] == pytest.approx(costs)
    # The dear document b ends before the third place.
    assert [p["gain"] for p in found] == pytest.approx([0, 6 - 8.8, 1.5 - 6.2, 1.5 - 9])
    before = [0, (36 - 6 * 8.8) / 3, (20 - 8 * 6.2) / 2, 36 - 8 * 9]
    assert [p["regret"] for p in found] == pytest.approx(before)
    assert context_lines(found)[-1].split() == ["8", "to", "16", "9.0000", "-7.5000", "-36.0"]


SPLIT = split_of(ByteTokenizer(), [TEXT[:200], TEXT[100:300]])


def bits(model: CompressiveTransformer, name: str, lanes: int = 2, **kwargs: int) -> float:
    scorer = Scorer(
        AblatedPredictor(model, SPLIT.vocabulary, CHANGES[name], **kwargs),
        SPLIT,
        ScoringConfig(lanes=lanes),
    )
    for _ in scorer:
        pass
    return scorer.result().nats


@pytest.mark.parametrize("compressed", [6, 3, 40])
def test_intact_memory_gives_the_score(compressed: int) -> None:
    model = build(replace(MODEL, compressed=compressed))
    assert bits(model, "intact") == pytest.approx(
        score(predictor(model), SPLIT, ScoringConfig(lanes=2)).nats, rel=1e-9
    )


def test_without_compressed_memory_it_is_the_model_that_has_none() -> None:
    """A Transformer-XL with the same weights."""
    model = build()
    none = CompressiveTransformer(replace(MODEL, compressed=0), 256).double().eval()
    none.load_state_dict(model.state_dict(), strict=False)
    config = ScoringConfig(lanes=2, warmup=20)
    scorer = Scorer(AblatedPredictor(model, SPLIT.vocabulary, CHANGES["absent"]), SPLIT, config)
    for _ in scorer:
        pass
    assert scorer.result().nats == pytest.approx(
        score(predictor(none), SPLIT, config).nats, rel=1e-9
    )


def test_each_change_matters_and_is_reproducible() -> None:
    model = build()
    costs = {name: bits(model, name) for name in CHANGES}
    assert len({round(cost, 6) for cost in costs.values()}) == len(CHANGES)
    assert costs["shuffled"] == bits(model, "shuffled")
    assert costs["shuffled"] != bits(model, "shuffled", seed=1)
    # One lane exchanges with itself.
    assert bits(model, "exchanged", lanes=1) == pytest.approx(bits(model, "intact", lanes=1))


def test_shuffling_keeps_live_slots_live() -> None:
    model = build()
    memory = model.empty_memory(2)
    for part in torch.arange(32).repeat(2, 1).split(8, dim=1):
        memory = model(part, memory).memory
    memory = memory.with_counts(compressed=torch.tensor([4, 6]))
    changed = CHANGES["shuffled"](MODEL, memory, torch.Generator().manual_seed(0))
    for before, after in zip(memory.compressed, changed.compressed, strict=True):
        assert not torch.equal(before, after)
        torch.testing.assert_close(before[0, :2], after[0, :2])
        for lane, live in ((0, 4), (1, 6)):
            torch.testing.assert_close(
                before[lane, -live:].sum(1).sort().values, after[lane, -live:].sum(1).sort().values
            )


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="must fall"):
        BreakdownConfig(edges=(10, 100))
    with pytest.raises(ValueError, match="not burnt"):
        BreakdownConfig(ablations=("intact", "burnt"))


def test_how_much_of_the_exchange_is_with_another_document() -> None:
    """The first third of the split is one document and the first of three lanes."""
    split = split_of(ByteTokenizer(), [b"a" * 40, b"b" * 80])
    for lanes, share in ((1, 0.0), (3, 2 / 3)):
        config = ScoringConfig(lanes=lanes, warmup=0)
        ablated = AblatedPredictor(build(), split.vocabulary, CHANGES["exchanged"])
        assert foreign(Scorer(ablated, split, config)) == share


def test_a_single_lane_has_nobody_to_exchange_with(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how = BreakdownConfig(lanes=1, edges=(100,), ablations=("absent", "exchanged"), worth=False)
    breakdown.main(trained_run, how, out=tmp_path)
    found = read_result(tmp_path / "breakdown-validation.json", Breakdown)["ablation"]
    assert found.keys() == {"absent"}
    assert "a single lane has no other to exchange memory with" in capsys.readouterr().err
    assert breakdowns({"run": read_result(tmp_path / "breakdown-validation.json", Breakdown)}, "x")


@pytest.mark.gpu
def test_a_gpu_breaks_down_alike(trained_run: Path, tmp_path: Path) -> None:
    """The programs load runs onto the GPU; weights of attention and ablations are read there."""
    breakdown.main(trained_run, BreakdownConfig(lanes=2, edges=(100,)), out=tmp_path)
    result = read_result(tmp_path / "breakdown-validation.json", Breakdown)
    assert sum(s[0] for s in result["attention"]["stores"].values()) == pytest.approx(1.0, rel=1e-4)
    assert result["ablation"]["intact"] == pytest.approx(result["value"], rel=1e-4)


def test_every_ablation_can_be_asked_for():
    assert tuple(CHANGES) == ABLATIONS
