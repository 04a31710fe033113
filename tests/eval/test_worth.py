"""Memory's worth: what an exact predictor must be told, and that the parts add up."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data.recall import KEY, copy
from data.shards import Shards
from eval import breakdown
from eval.eval_config import BreakdownConfig
from eval.results import Breakdown, read_result
from eval.worth import WorthScorer, characters
from lm.inference.beside import Beside, Forgetful
from lm.inference.inference_config import ScoringConfig
from lm.inference.loading import load_run
from lm.inference.predictor import Predictor
from lm.scoring import score
from tests.predictors import BYTES
from tests.texts import split_of

SEGMENT = 16


@dataclass
class Read:
    """The bytes of a document that each lane has read, after the one before it."""

    texts: list[list[int]]

    @property
    def lanes(self) -> int:
        return len(self.texts)

    def reset(self, reset_B: Tensor) -> "Read":
        pairs = zip(self.texts, reset_B.tolist(), strict=True)
        return Read([[] if fresh else text for text, fresh in pairs])

    def select(self, lanes: Sequence[int]) -> "Read":
        return Read([self.texts[lane] for lane in lanes])

    def tensors(self) -> dict[str, Tensor]:
        return {f"{lane}": torch.tensor(text) for lane, text in enumerate(self.texts)}


class Exact(Predictor[Read]):
    """The best prediction of a copy document of a known distance, of bytes that are in sight."""

    segment, warmup = SEGMENT, 0

    def __init__(self, distance: int, forgets: bool) -> None:
        self.vocabulary, self.distance, self.forgets = BYTES, distance, forgets

    def begin(self, lanes: int) -> Read:
        return Read([[] for _ in range(lanes)])

    def restore(self, tensors: Mapping[str, Tensor]) -> Read:
        return Read([text.tolist() for text in tensors.values()])

    def follows(self, text: list[int], seen_from: int) -> Tensor:
        """Of the document's next byte; bytes before `seen_from` are not seen."""
        place, distance = len(text), self.distance
        probabilities = torch.zeros(256, dtype=torch.float64)
        if place < KEY:
            probabilities[ord("a") : ord("z") + 1] = 1 / 26
        elif place < distance - 1:
            probabilities[ord("0") : ord("9") + 1] = 1 / 10
        elif place == distance - 1:
            probabilities[ord("=")] = 1
        elif place < distance + KEY:
            source = place - distance
            if source >= seen_from:
                probabilities[text[source]] = 1
            else:
                probabilities[ord("a") : ord("z") + 1] = 1 / 26
        else:
            probabilities[ord("\n")] = 1
        return probabilities

    def read(
        self, tokens_Bt: Tensor, state: Read, counts: Sequence[int] | None = None
    ) -> tuple[Tensor, Read]:
        found = torch.zeros(*tokens_Bt.shape, 256, dtype=torch.float64)
        texts = []
        for lane, before in enumerate(state.texts):
            # The first token that is read is the one before the document.
            text, seen = list(before), max(len(before) - 1, 0) if self.forgets else 0
            for column, token in enumerate(tokens_Bt[lane].tolist()):
                text.append(token)
                found[lane, column] = self.follows(text[1:], seen)
            texts.append(text)
        return found.log(), Read(texts)


@pytest.mark.parametrize("distance", [16, 20, 61])
def test_copied_letters_beyond_the_segment_are_worth_log_26(distance: int) -> None:
    """And nothing else is worth anything, of an exact predictor beside one that forgets."""
    draws = random.Random(0)
    documents = [copy(draws, distance) for _ in range(5)]
    split = split_of(BYTES, [text.encode() for text, _ in documents])
    pair = Beside(Exact(distance, forgets=False), Exact(distance, forgets=True))
    scorer = WorthScorer(pair, split, ScoringConfig(lanes=1, warmup=0, reset_documents=True))
    for _ in scorer:
        pass
    length = distance + KEY + 1
    expected = np.zeros(5 * length)
    for number, (_, answers) in enumerate(documents):
        for place in range(answers[0].first, answers[0].first + KEY):
            if place - distance < place // SEGMENT * SEGMENT:
                expected[number * length + place] = log(26)
    assert expected.sum() > 0
    assert scorer.worth == pytest.approx(expected, abs=1e-12)
    assert scorer.difference == pytest.approx(expected, abs=1e-12)
    exact = 5 * (KEY * log(26) + (distance - KEY - 1) * log(10))
    assert scorer.result().nats == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("local", ["segment", "memory"])
def test_what_memory_saves_is_what_the_scores_differ_by(
    trained_run: Path,
    shards: Shards,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    local: str,
) -> None:
    config = BreakdownConfig(lanes=2, edges=(2000, 100), ablations=(), local=local)  # type: ignore[arg-type]
    breakdown.main(trained_run, config, out=tmp_path)
    result = read_result(tmp_path / "breakdown-validation.json", Breakdown)
    found, split = result["worth"], shards.split("validation")
    loaded = load_run(trained_run, None)
    forgetful = Forgetful(loaded.model, loaded.vocabulary, found["local"])
    own = ScoringConfig(lanes=2, warmup=loaded.predictor.warmup)
    cost = score(forgetful, split, own).nats
    assert found["local"] == local and found["tokens"] == len(split.tokens)
    saved = (cost - result["nats"]) / found["tokens"]
    assert found["difference"] == pytest.approx(saved, abs=1e-5)
    assert found["worth"] > 0
    for part in ("worth", "difference"):
        places = sum(row[part] * row["tokens"] for row in found["position"])
        assert places == pytest.approx(found[part] * found["tokens"], rel=1e-6, abs=1e-6)
        words = sum(row[part] * row["words"] for row in found["frequency"])
        assert words == pytest.approx(found[part] * found["tokens"], rel=1e-4, abs=1e-4)
    page = (tmp_path / "worth-validation.html").read_text()
    assert "KL(full || local)" in page and page.count("<h2>") > 1
    shown = capsys.readouterr().out
    assert "memory's worth in nats a token" in shown and "below 100" in shown


def test_bytes_of_one_character_stand_together() -> None:
    pieces = [bytes([byte]) for byte in "aé€".encode()] + [b"\xff", b"<"]
    found = list(characters(pieces))
    assert [text for text, _, _ in found] == ["a", "é", "€", "\ufffd<"]
    assert [(first, last) for _, first, last in found] == [(0, 1), (1, 3), (3, 6), (6, 8)]


def test_worth_may_be_left_out(trained_run: Path, tmp_path: Path) -> None:
    breakdown.main(trained_run, BreakdownConfig(lanes=2, ablations=(), worth=False), out=tmp_path)
    assert "worth" not in read_result(tmp_path / "breakdown-validation.json", Breakdown)
    assert not (tmp_path / "worth-validation.html").exists()
    with pytest.raises(ValueError, match="local has no effect with worth false"):
        BreakdownConfig(worth=False, local="segment")
