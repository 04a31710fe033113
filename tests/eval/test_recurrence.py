"""Documents that come again, and what is answered after the memory of the first."""

import json
import random
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import pytest
import torch

from data import series
from data.options import DataConfig
from data.prepare import prepare
from data.series import KEY, SeriesConfig, held_out
from data.tokenizers.registry import ByteTokenizer
from eval import recurrence
from eval.reach import read_answers
from eval.recurring import read_recurrences, recur, table
from lm.inference import episodes
from lm.inference.episodes import key_of
from lm.inference.predictor import ModelState
from lm.library import LibraryConfig
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from tests.predictors import predictor
from tests.texts import split_of

SMALL = SeriesConfig(gaps=(1, 3), opening=12, after=8, documents=6, held_out=3)
LENGTHS = ModelConfig(
    layers=1, width=16, heads=2, feedforward=32, segment=8, memory=16, compressed=4, rate=2
)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_questions_are_answered_by_the_document_that_they_come_back_to(tmp_path: Path) -> None:
    series.main(SMALL, tmp_path / "text")
    for record in lines(tmp_path / "text/train.jsonl"):
        ((first, count, back),) = record["answers"]
        text = record["text"]
        code = text[first : first + count]
        assert count == 1 and code in ascii_uppercase and text[first - back :][:count] == code
        assert text.count(text[:KEY]) == 2 and text[first - 1] == "?"
        assert text[first - back - 1] == "="
    lengths = {len(record["text"]) for record in lines(tmp_path / "text/train.jsonl")}
    # Some are shorter than any that is held out.
    shortest = 2 * SMALL.opening + SMALL.after + 6
    assert min(lengths) < shortest <= max(lengths)
    records = lines(tmp_path / "text/test.jsonl")
    gaps = []
    for number, record in enumerate(records):
        if record["recurs"] is None:
            assert not record["answers"]
            continue
        before, ((first, count, _),) = records[record["recurs"]]["text"], record["answers"]
        assert before[:KEY] == record["text"][:KEY]
        assert f"={record['text'][first : first + count]}." in before
        assert first > SMALL.opening
        gaps.append(number - record["recurs"] - 1)
    assert gaps == [1] * 4 + [3] * 4
    # Nobody else has the name.
    assert len({record["text"][:KEY] for record in records}) == len(records) / 2
    again = tmp_path / "again"
    series.main(SMALL, again)
    assert (again / "test.jsonl").read_bytes() == (tmp_path / "text/test.jsonl").read_bytes()


def test_each_memory_is_what_reading_that_document_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    series.main(SMALL, tmp_path / "text")
    path = tmp_path / "text/test.jsonl"
    texts = [record["text"].encode() for record in lines(path)]
    split = split_of(ByteTokenizer(), texts)
    torch.manual_seed(0)
    reader = predictor(CompressiveTransformer(LENGTHS, 256))
    rows, recurs = read_answers(path, split), read_recurrences(path)
    monkeypatch.setattr(episodes, "MARGIN", 0.0)
    tried = recur(reader, split, rows, recurs, opening=8)
    monkeypatch.setattr(episodes, "MARGIN", 1e9)  # The nearest in any case.
    found = recur(reader, split, rows, recurs, opening=8)
    assert [(row["gap"], row["questions"]) for row in found] == [(1, 4), (3, 4)]

    def read(number: int, memory) -> torch.Tensor:
        """Guesses of a document's bytes, a byte at a time."""
        ids = [reader.vocabulary.start, *texts[number]]
        state, guesses = ModelState(memory), []
        for each in ids[:-1]:
            hidden, state = reader.read(torch.tensor([[each]]), state)
            guesses.append(int(reader.logits(hidden)[0, -1].argmax()))
        return torch.tensor(guesses)

    def left_by(number: int):
        ids = torch.tensor([[reader.vocabulary.start, *texts[number]]])
        whole = ids.shape[1] // 8 * 8
        return reader.read(ids[:, :whole], reader.begin(1))[1].memory

    right: dict[str, list[float]] = {"none": [], "same": [], "other": []}
    for number, same in recurs.items():
        begun = {
            "none": reader.begin(1).memory,
            "same": left_by(same),
            "other": left_by(number - 1),
        }
        ((first, count, _),) = lines(path)[number]["answers"]
        for arm, memory in begun.items():
            guesses = read(number, memory)[first : first + count].numpy()
            right[arm].append(
                float(
                    (
                        guesses == np.frombuffer(texts[number], np.uint8)[first : first + count]
                    ).mean()
                )
            )
    for arm, shares in right.items():
        told = np.repeat([row["right"][arm] for row in found], 4)
        assert np.mean(shares) == pytest.approx(told.mean())
    # Names are letters, all else is dots: even weights drawn at random tell documents apart.
    assert [row["nearest"] for row in found] == [1.0, 1.0]
    assert [row["found"] for row in found] == [1.0, 1.0]
    assert all(row["right"]["found"] == row["right"]["same"] for row in found)
    # Of the eight nearest and none, the one that tells the name best is taken.
    keys = [key_of(reader, np.frombuffer(text, np.uint8), 8) for text in texts]
    own = []
    for number, same in recurs.items():
        far = torch.stack([(key - keys[number]).square().sum() for key in keys[:number]])
        begun = [(which, left_by(which)) for which in far.argsort()[:8].tolist()]
        name = torch.tensor([[*texts[number][:8]]])
        inputs = torch.cat([torch.tensor([[reader.vocabulary.start]]), name[:, :7]], dim=1)
        nats = {}
        for which, memory in [*begun, (None, reader.begin(1).memory)]:
            hidden, _ = reader.read(inputs, ModelState(memory))
            nats[which] = float(reader.nats(hidden, name).sum())
        own.append(min(nats, key=nats.__getitem__) == same)
    assert [row["found"] for row in tried] == [np.mean(own[:4]), np.mean(own[4:])]
    assert [row["nearest"] for row in tried] == [1.0, 1.0]
    assert len(table(found).splitlines()) == 3


def test_the_program(trained_run: Path, tmp_path: Path, capsys) -> None:
    series.main(SMALL, tmp_path / "text")
    source, shards = str(tmp_path / "text"), tmp_path / "shards"
    prepare(DataConfig(corpus="text", source=source, shards=shards))
    answers, out = tmp_path / "text/validation.jsonl", tmp_path / "out.json"
    recurrence.main(trained_run, LibraryConfig(opening=8), answers, "validation", shards, json=out)
    result = json.loads(out.read_text())
    assert result["protocol"]["opening"] == 8 and result["protocol"]["lanes"] == 1
    assert len(result["recurrence"]) == 2
    assert table(result["recurrence"]) in capsys.readouterr().out


@pytest.mark.bad_input("eval.recurrence")
def test_what_cannot_be_asked_is_said(trained_run: Path, tmp_path: Path) -> None:
    series.main(SMALL, tmp_path / "text")
    source, shards = str(tmp_path / "text"), tmp_path / "shards"
    prepare(DataConfig(corpus="text", source=source, shards=shards))

    def ask(opening: int, split: str, **lengths: int) -> None:
        answers, how = tmp_path / f"text/{split}.jsonl", LibraryConfig(opening=opening, **lengths)
        recurrence.main(trained_run, how, answers, split, shards)

    with pytest.raises(ValueError, match="asks within its opening of 40 tokens; give a shorter"):
        ask(40, "test")
    with pytest.raises(ValueError, match=r"no document of .*train.jsonl comes again; give the"):
        ask(8, "train")
    with pytest.raises(ValueError, match="nothing is left of a document; give --memory"):
        ask(8, "test", memory=0, compressed=0)


@pytest.mark.bad_input("data.series")
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gaps": ()}, "gaps must be some different numbers"),
        ({"gaps": (2, 2)}, "gaps must be some different numbers"),
        ({"opening": 8}, "an opening has more than the 8 letters of a name"),
    ],
)
def test_a_series_that_makes_no_sense(changes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SeriesConfig(**changes)


def test_blocks_are_drawn_until_each_gap_is_asked_often_enough() -> None:
    documents = list(held_out(SeriesConfig(gaps=(4,), held_out=6), random.Random(0)))
    assert sum(document["recurs"] is not None for document in documents) == 10
