"""Texts of recall say the truth about their answers, and accuracy is counted where they are."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from data import recall
from data.options import DataConfig
from data.prepare import prepare
from data.recall import TASKS, RecallConfig, cue
from data.tokenizers.registry import ByteTokenizer
from eval import distance
from eval.eval_config import ScoreConfig
from eval.reach import RecallScorer, buckets, read_answers
from lm.inference.inference_config import ScoringConfig
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.scoring import score
from tests.predictors import predictor
from tests.texts import TEXT, split_of


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("far", [16, 100, 1000])
def test_what_is_asked_stands_so_far_back(task: str, far: int) -> None:
    draws = random.Random(1)
    for _ in range(20):
        text, answers = TASKS[task](draws, far)
        assert answers
        for first, count, back in answers:
            assert text[first : first + count] == text[first - back : first - back + count]
            assert text[first : first + count].isalpha()
            # Fillers are of whole words, and there are several pairs.
            assert far <= back <= far + 48


def test_a_cue_is_told_by_nothing_but_itself() -> None:
    draws = random.Random(2)
    texts = [cue(draws, 40)[0] for _ in range(2000)]
    assert {text.strip(".")[0] for text in texts} == set("ABCD")
    assert {len(text) - 42 for text in texts} == set(range(65))
    for text in texts:
        letter = text.strip(".")[0]
        assert text.strip(".") == f"{letter}{'.' * 38}?{letter}\n"


def test_every_document_is_another_and_splits_differ(tmp_path: Path) -> None:
    config = RecallConfig(task="needle", distances=(32, 64), documents=6, held_out=4)
    recall.main(config, tmp_path)
    splits = {
        split: [json.loads(line) for line in (tmp_path / f"{split}.jsonl").open()]
        for split in ("train", "validation", "test")
    }
    assert [len(rows) for rows in splits.values()] == [6, 4, 4]
    texts = [row["text"] for rows in splits.values() for row in rows]
    assert len(set(texts)) == 14
    again = (tmp_path / "test.jsonl").read_text()
    recall.main(config, tmp_path)
    assert (tmp_path / "test.jsonl").read_text() == again
    backs = [row["answers"][0][2] for row in splits["train"]]
    assert min(backs[1::2]) > max(backs[::2])


def test_known_tokens_are_the_most_probable_ones() -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        layers=1, width=16, heads=2, feedforward=32, segment=8, memory=8, compressed=6, rate=2
    )
    model = CompressiveTransformer(config, 256)
    with torch.no_grad():
        # Always "e".
        model.head.bias[ord("e")] = 100.0
    split = split_of(ByteTokenizer(), [TEXT[:93], TEXT[93:200]])
    settings = ScoringConfig(lanes=2, reset_documents=True)
    scorer = RecallScorer(predictor(model), split, settings)
    for _ in scorer:
        pass
    np.testing.assert_array_equal(scorer.known_N, split.tokens == ord("e"))
    assert scorer.result().nats == pytest.approx(
        score(predictor(model), split, settings).nats, rel=1e-6
    )


def test_buckets_by_powers_of_two() -> None:
    known = np.array([1, 1, 0, 1, 1, 1, 0, 0], dtype=bool)
    rows = np.array([[0, 2, 16], [2, 2, 31], [4, 3, 32]])
    assert buckets(known, rows) == [
        {"from": 16, "to": 32, "answers": 2, "bytes": 4, "accuracy": 0.75, "whole": 0.5},
        {
            "from": 32,
            "to": 64,
            "answers": 1,
            "bytes": 3,
            "accuracy": pytest.approx(2 / 3),
            "whole": 0.0,
        },
    ]


def test_the_program(trained_run: Path, tmp_path: Path, capsys) -> None:
    """With a model that knows nothing of the task, from text to table."""
    config = RecallConfig(task="copy", distances=(16, 32, 70, 500), documents=4, held_out=4)
    recall.main(config, tmp_path / "text")
    source, shards = str(tmp_path / "text"), tmp_path / "shards"
    prepare(DataConfig(corpus="text", source=source, shards=shards))
    how, answers = ScoreConfig(lanes=2, reset_documents=True), tmp_path / "text/test.jsonl"
    distance.main(trained_run, how, answers, shards=shards, json=tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())["distance"]
    assert found["reach"] == {"segment": 8, "memory": 16, "compressed": 24, "model": 40}
    assert [b["from"] for b in found["buckets"]] == [16, 32, 64, 256]
    shown = capsys.readouterr().out
    for name in ("compressed", "model", "out of range"):
        assert name in shown
    with pytest.raises(ValueError, match="give --reset-documents"):
        distance.main(trained_run, ScoreConfig(), answers, shards=shards)
    with pytest.raises(ValueError, match="is not the text of the split"):
        distance.main(trained_run, how, tmp_path / "text/train.jsonl", shards=shards)
    with pytest.raises(ValueError, match="is not there"):
        read_answers(tmp_path / "none", split_of(ByteTokenizer(), [TEXT]))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes"):
        RecallConfig(distances=(8,))
    with pytest.raises(ValueError, match="at least 1"):
        RecallConfig(held_out=0)
