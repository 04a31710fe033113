"""Predictors of one's own, written against the interface alone: they are scored, compress a file
and give it back, write text, and remember where a score stopped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from data.tokenizers.fixed import ByteTokenizer
from eval.coding import compress, restore
from lm.inference.inference_config import SamplingConfig, ScoringConfig
from lm.inference.predictor import Predictor
from lm.inference.session import Session, Writing
from lm.scoring import Scorer, score
from tests.texts import split_of

TEXT = b"the long book of memory and time was read by one who wrote it down " * 20


@dataclass
class Last:
    """The last tokens of each lane, [B, n]; -1 before the first."""

    tokens_Bn: Tensor

    @property
    def lanes(self) -> int:
        return len(self.tokens_Bn)

    def reset(self, reset_B: Tensor) -> "Last":
        return Last(torch.where(reset_B[:, None], -1, self.tokens_Bn))

    def select(self, lanes: Sequence[int]) -> "Last":
        return Last(self.tokens_Bn[list(lanes)])

    def tensors(self) -> dict[str, Tensor]:
        return {"tokens": self.tokens_Bn}


class Uniform(Predictor[Last]):
    """Every token is as likely as any other."""

    segment, warmup, order = 7, 0, 1

    def __init__(self) -> None:
        self.vocabulary = ByteTokenizer()

    def begin(self, lanes: int) -> Last:
        return Last(torch.full((lanes, self.order), -1))

    def restore(self, tensors: Mapping[str, Tensor]) -> Last:
        return Last(tensors["tokens"])

    def follows(self, context_n: tuple[int, ...]) -> Tensor:
        return torch.full((256,), 1 / 256, dtype=torch.float64)

    def read(
        self, tokens_Bt: Tensor, state: Last, counts: Sequence[int] | None = None
    ) -> tuple[Tensor, Last]:
        counts = [tokens_Bt.shape[1]] * state.lanes if counts is None else counts
        probabilities = torch.ones(*tokens_Bt.shape, 256, dtype=torch.float64)
        last = state.tokens_Bn.clone()
        for lane, count in enumerate(counts):
            for column in range(count):
                last[lane] = torch.cat([last[lane, 1:], tokens_Bt[lane, column, None]])
                probabilities[lane, column] = self.follows(tuple(last[lane].tolist()))
        return probabilities.log(), Last(last)


class NGram(Uniform):
    """Counts of what followed the last two bytes in a text, one added to each."""

    warmup, order = 2, 2

    def __init__(self, text: bytes) -> None:
        super().__init__()
        self.counts: dict[tuple[int, ...], np.ndarray] = {}
        for place in range(2, len(text)):
            context = tuple(text[place - 2 : place])
            row = self.counts.setdefault(context, np.ones(256))
            row[text[place]] += 1000

    def follows(self, context_n: tuple[int, ...]) -> Tensor:
        row = self.counts.get(context_n, np.ones(256))
        return torch.from_numpy(row / row.sum())


PREDICTORS = {"uniform": Uniform(), "trigrams": NGram(TEXT)}


@pytest.mark.parametrize("lanes", [1, 3])
def test_they_are_scored(lanes: int) -> None:
    split = split_of(ByteTokenizer(), [TEXT[:301], TEXT[70:400]])
    config = ScoringConfig(lanes=lanes, reset_documents=True)
    uniform, trigrams = (score(each, split, config) for each in PREDICTORS.values())
    assert uniform.tokens == trigrams.tokens == 631
    assert uniform.bits_per_byte == pytest.approx(8)
    # By hand: what each byte costs after the two before it, where a document begins with none.
    nats = 0.0
    for text in (TEXT[:301], TEXT[70:400]):
        context = (-1, split.vocabulary.start)
        for byte in text:
            nats -= log(float(PREDICTORS["trigrams"].follows(context)[byte]))
            context = (context[1], byte)
    assert trigrams.nats == pytest.approx(nats)


@pytest.mark.parametrize("name", PREDICTORS)
@pytest.mark.parametrize("lanes", [1, 4])
def test_they_compress_a_file_and_give_it_back(name: str, lanes: int) -> None:
    predictor, digest, file = PREDICTORS[name], bytes(16), Path("book.txt")
    packed = compress(predictor, digest, TEXT, lanes, file)
    assert restore(predictor, digest, packed, file) == TEXT
    if name == "uniform":
        assert len(TEXT) < len(packed) < len(TEXT) + 150
    else:
        assert len(packed) < len(TEXT) / 4


def test_they_write_text() -> None:
    session = Session.begin(PREDICTORS["trigrams"], 2)
    session.read([np.frombuffer(b"the lo", np.uint8), np.frombuffer(b"memor", np.uint8)])
    copies = session.repeat(2)
    how = Writing(SamplingConfig(temperature=0), tokens=12, seeds=[0, 1, 2, 3], stops=[b"time"])
    written = copies.write(how)
    # By hand: the most frequent third letter each time, "time" cut off.
    expected = []
    for text in (b"the lo", b"memor"):
        told = text
        while len(told) < len(text) + 12 and not told.endswith(b"time"):
            following = PREDICTORS["trigrams"].follows(tuple(told[-2:]))
            told += bytes([int(following.argmax())])
        expected += [told[len(text) :].removesuffix(b"time")] * 2
    assert written == expected
    drawn = Writing(SamplingConfig(), tokens=30, seeds=[0, 1])
    uniform = Session.begin(PREDICTORS["uniform"], 2)
    first, second = uniform.write(drawn)
    assert len(first) == len(second) == 30
    assert first != second


def test_a_score_goes_on_where_it_stopped() -> None:
    split, predictor = split_of(ByteTokenizer(), [TEXT]), PREDICTORS["trigrams"]
    whole = Scorer(predictor, split, ScoringConfig(lanes=2))
    for _ in whole:
        pass
    first = Scorer(predictor, split, ScoringConfig(lanes=2))
    for _ in range(len(first) // 2):
        first.advance()
    second = Scorer(predictor, split, ScoringConfig(lanes=2))
    second.load(first.kept())
    for _ in second:
        pass
    assert second.result() == whole.result()
