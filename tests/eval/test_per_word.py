"""Costs of words against a loop over bytes, for every vocabulary; frequencies by hand."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tokenizers.registry import ByteTokenizer
from data.tokenizers.words import LINE_END
from eval import per_word
from eval.per_word import by_frequency, split_words, training_counts, word_costs
from tests.texts import TEXT, split_of, vocabularies

VOCABULARIES = {name: v for name, v in vocabularies().items() if name != "mulaw"}


def naive(text: bytes, sizes: list[int], nats: list[float], line_ends: bool) -> list[float]:
    """Costs of words, found token by token and byte by byte."""
    owner: list[int | None] = []
    number, inside = -1, False
    for byte in text:
        if byte == 10 and line_ends:
            number, inside = number + 1, False
            owner.append(number)
        elif byte in b" \t\n\r\x0b\x0c":
            inside = False
            owner.append(None)
        else:
            number += not inside
            inside = True
            owner.append(number)
    total = number + 1
    costs, at = [0.0] * total, 0
    for size, cost in zip(sizes, nats, strict=True):
        own = [each for each in owner[at : at + size] if each is not None]
        following = [each for each in owner[at + size :] if each is not None]
        at += size
        if total:
            costs[own[-1] if own else following[0] if following else total - 1] += cost
    return costs


@given(text=st.text("ab \n\té", max_size=40), line_ends=st.booleans(), data=st.data())
def test_equals_a_loop_however_the_bytes_are_grouped(text, line_ends, data) -> None:
    content = text.encode()
    sizes, left = [], len(content)
    while left:
        sizes.append(data.draw(st.integers(1, left)))
        left -= sizes[-1]
    nats = [float(i + 1) for i in range(len(sizes))]
    found = per_word.word_of_each_token(
        np.frombuffer(content, dtype=np.uint8), np.array(sizes, dtype=np.int64), line_ends
    )
    expected = naive(content, sizes, nats, line_ends)
    assert len(expected) == len(split_words(content, line_ends))
    if expected:
        assert np.bincount(found, nats, minlength=len(expected)).tolist() == expected
    else:
        assert (found == -1).all()


@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("line_ends", [False, True])
def test_costs_add_up_for_every_vocabulary(kind: str, line_ends: bool) -> None:
    split = split_of(VOCABULARIES[kind], [TEXT, b" a word \n"])
    nats = np.random.default_rng(0).random(len(split.tokens))
    costs = list(word_costs(split, nats, line_ends))
    assert [len(words) for words, _ in costs] == [
        len(split_words(text, line_ends)) for text in (TEXT, b" a word \n")
    ]
    assert sum(cost.sum() for _, cost in costs) == pytest.approx(nats.sum())
    if kind == "words" and line_ends:
        # One token a word: each pays for itself.
        np.testing.assert_allclose(np.concatenate([cost for _, cost in costs]), nats)


def test_frequencies_are_those_of_the_training_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(per_word, "BLOCK_TOKENS", 7)
    train = split_of(ByteTokenizer(), [b"a a a bb bb\nccc ", b"a\n"])
    assert training_counts(train, False).counts == {b"a": 4, b"bb": 2, b"ccc": 1}
    training = training_counts(train, True)
    assert training.counts == {b"a": 4, b"bb": 2, b"ccc": 1, LINE_END: 2}
    split = split_of(ByteTokenizer(), [b"a ccc new\n", b"bb"])
    nats = np.arange(1.0, 13.0)
    buckets = by_frequency(split, nats, training, (4, 2))
    assert [(name, words) for name, words, _ in buckets] == [
        ("from 4", 1),
        ("2 to 4", 2),
        ("below 2", 2),
    ]
    # "a" is byte 1, " ccc" 2 to 5, " new" 6 to 9, the line end 10, "bb" 11 and 12.
    assert [nats for *_, nats in buckets] == [1.0, 10.0 + 11 + 12, 2.0 + 3 + 4 + 5 + 6 + 7 + 8 + 9]


def test_counts_are_those_of_the_whole_text() -> None:
    found = training_counts(split_of(ByteTokenizer(), [TEXT]), False)
    assert found.counts == Counter(TEXT.split())


def test_no_word_spans_two_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does a stray byte of training make line ends words."""
    for block in (2, 1000):
        monkeypatch.setattr(per_word, "BLOCK_TOKENS", block)
        train = split_of(ByteTokenizer(), [b"yes", b"no", b"", b"yes", LINE_END + b" no"])
        training = training_counts(train, False)
        assert training.counts == {b"yes": 2, b"no": 2, LINE_END: 1}
    asked = split_of(ByteTokenizer(), [b"yes\nno", b"maybe"])
    buckets = by_frequency(asked, np.ones(11), training, (2, 1))
    assert [words for _, words, _ in buckets] == [2, 0, 1]
