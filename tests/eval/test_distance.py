"""Texts of recall say the truth about their answers, and accuracy is counted where they are."""

import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from data import recall
from data.options import DataConfig
from data.prepare import prepare
from data.recall import PEOPLE, SHORTEST, TASKS, TOWNS, RecallConfig, TaskName, cue
from data.tokenizers.registry import ByteTokenizer, SentencePieceTokenizer, WordTokenizer
from eval import distance
from eval.eval_config import ScoreConfig
from eval.reach import RecallScorer, buckets, read_answers, require_distances
from eval.results import Distance, read_result
from lm.inference.inference_config import ScoringConfig
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.scoring import score
from tests.predictors import predictor
from tests.texts import TEXT, split_of


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("far", [16, 100, 1000])
def test_what_is_asked_stands_so_far_back(task: TaskName, far: int) -> None:
    draws, far = random.Random(1), max(far, SHORTEST.get(task, 0))
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


def followed(text: str, who: str) -> str:
    """The town of one who lives in it, or with somebody who does."""
    told = dict(re.findall(r"(\w+) lives (?:in|with) (\w+)[.]", text))
    while who in told:
        who = told[who]
    return who


@pytest.mark.parametrize("task", ["key_value", "chain"])
@pytest.mark.parametrize("far", [96, 200, 1000])
def test_towns_are_told_once_and_not_by_their_place(task: TaskName, far: int) -> None:
    """What is asked follows from the sentences, and neither the first nor the last town is it."""
    draws, first, last, asked = random.Random(3), 0, 0, set()
    for _ in range(300):
        text, [answer] = TASKS[task](draws, far)
        town = text[answer.first : answer.first + answer.bytes]
        before, question = text[: answer.first], text[: answer.first].split()[-3]
        assert question in PEOPLE
        assert town in TOWNS
        assert before.endswith(f"{question} lives in ")
        assert followed(before, question) == town
        towns = [word for word in re.findall(r"\w+", before) if word in TOWNS]
        assert len(set(towns)) == len(towns) == (8 if task == "key_value" else 2)
        first, last = first + (towns[0] == town), last + (towns[-1] == town)
        asked.add(town)
    assert asked == set(TOWNS)
    assert first < 200
    # At the least distance of a chain another town fits before alone.
    if far > SHORTEST["chain"]:
        assert last < 200


def test_guests_come_again_in_their_order() -> None:
    """Eight different people, drawn anew for each document, and nothing but the list names them."""
    draws, asked = random.Random(5), set()
    for _ in range(100):
        text, answers = TASKS["names"](draws, 200)
        guests = [text[first : first + count] for first, count, _ in answers]
        assert len(set(guests)) == 8
        assert re.findall("[A-Z][a-z]+", text) == guests * 2
        assert text.endswith(f" the guests are {', '.join(guests)}.\n")
        assert len({back for _, _, back in answers}) == 1
        asked.add(tuple(guests))
    assert len(asked) == 100
    assert {who for guests in asked for who in guests} == set(PEOPLE)


def test_answers_are_found_in_subwords(tmp_path: Path) -> None:
    """Tokens of an answer hold all its bytes; a distance is counted from where it was told."""
    written = [TASKS[task](random.Random(4), 300) for task in ("needle", "key_value", "chain")]
    texts = [text.encode() for text, _ in written]
    lines = [" ".join(text.split()) for text, _ in written]
    split = split_of(SentencePieceTokenizer.train(iter(lines * 9), 400, "bpe"), texts)
    path = tmp_path / "test.jsonl"
    records = [json.dumps({"text": text, "answers": answers}) for text, answers in written]
    path.write_text("\n".join(records))
    rows, pieces = read_answers(path, split), [split.vocabulary.pieces[i] for i in split.tokens]
    assert len(pieces) < len(b"".join(texts)) / 2
    for (first, count, back), (text, [answer]) in zip(rows, written, strict=True):
        town = text[answer.first : answer.first + answer.bytes].encode()
        assert town in b"".join(pieces[first : first + count])
        inner = (
            b"".join(pieces[first + 1 : first + count]),
            b"".join(pieces[first : first + count - 1]),
        )
        assert not any(town in each for each in inner)
        told = first - back
        assert town in b"".join(pieces[told : told + count + len(town)])
        assert b"".join(pieces[told:first]).count(town) == 1
    words = WordTokenizer.build(Counter([b"the", b"code"]))
    with pytest.raises(ValueError, match=r"words-.* loses some of the text"):
        read_answers(path, split_of(words, texts))
    path.write_text(records[0])
    with pytest.raises(ValueError, match="is not the text of the split"):
        read_answers(path, split)


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
        {"from": 16, "to": 32, "answers": 2, "tokens": 4, "accuracy": 0.75, "whole": 0.5},
        {
            "from": 32,
            "to": 64,
            "answers": 1,
            "tokens": 3,
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
    found = read_result(tmp_path / "out.json", Distance)["distance"]
    assert found["reach"] == {"segment": 8, "memory": 16, "compressed": 24, "model": 40}
    assert [b["from"] for b in found["buckets"]] == [16, 32, 64, 256]
    shown = capsys.readouterr().out
    for name in ("compressed", "model", "out of range"):
        assert name in shown
    with pytest.raises(ValueError, match="give --reset-documents"):
        distance.main(trained_run, ScoreConfig(), answers, shards=shards)
    with pytest.raises(ValueError, match="is not the text of the split"):
        distance.main(trained_run, how, tmp_path / "text/train.jsonl", shards=shards)
    with pytest.raises(ValueError, match="stand behind nothing in their document: give a text of"):
        require_distances(answers, np.array([[3, 1, 16], [9, 1, 0]]))
    split, empty = split_of(ByteTokenizer(), [b"a text"]), tmp_path / "empty.jsonl"
    empty.write_text(json.dumps({"text": "a text", "answers": []}))
    with pytest.raises(ValueError, match="has no answers; give a text of data"):
        read_answers(empty, split)
    with pytest.raises(ValueError, match="is not there"):
        read_answers(tmp_path / "none", split_of(ByteTokenizer(), [TEXT]))


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="at least 16 bytes"):
        RecallConfig(distances=(8,))
    with pytest.raises(ValueError, match="chain must be some of at least 96"):
        RecallConfig(task="chain", distances=(95, 200))
    with pytest.raises(ValueError, match="at least 1"):
        RecallConfig(held_out=0)
