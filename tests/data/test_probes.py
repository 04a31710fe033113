"""Predictions of made-up sources equal brute force, and the text says the truth about itself."""

import json
from collections.abc import Sequence
from itertools import pairwise, product
from math import lgamma
from pathlib import Path

import numpy as np
import pytest

from data import probes
from data.mixtures import Source, SourceName, draw, nats, predictions, windowed
from data.probes import ProbeConfig

SOURCES = (
    Source("bernoulli", prior=0.5),
    Source("dirichlet", symbols=3, prior=1.0),
    Source("markov", symbols=3, prior=0.7),
    Source("switching", symbols=2, prior=0.5, hazard=0.2),
)


def die(symbols: Sequence[int], source: Source) -> float:
    """Log-probability of symbols from one die of unknown sides, in closed form."""
    size, prior = source.symbols, source.prior
    counts = [list(symbols).count(k) for k in range(size)]
    whole = lgamma(size * prior) - lgamma(size * prior + len(symbols))
    return whole + sum(lgamma(prior + count) - lgamma(prior) for count in counts)


def brute_force(symbols: Sequence[int], source: Source) -> float:
    """Probability of an episode, by going through all that may have happened."""
    if source.task == "markov":
        rows = [
            [there for here, there in pairwise(symbols) if here == k] for k in range(source.symbols)
        ]
        return float(np.exp(sum(die(row, source) for row in rows)) / source.symbols)
    if source.task != "switching":
        return float(np.exp(die(symbols, source)))
    total = 0.0
    for changes in product([False, True], repeat=len(symbols) - 1):
        cuts = [0, *(i + 1 for i, change in enumerate(changes) if change), len(symbols)]
        runs = [symbols[a:b] for a, b in pairwise(cuts)]
        odds = np.prod([source.changes if change else 1 - source.changes for change in changes])
        total += float(odds * np.exp(sum(die(run, source) for run in runs)))
    return total


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.task)
def test_predictions_are_those_of_brute_force(source: Source) -> None:
    length = 7 if source.symbols == 2 else 5
    episodes = np.array(list(product(range(source.symbols), repeat=length)))
    p_DNK = predictions(source, episodes)
    np.testing.assert_allclose(p_DNK.sum(axis=2), 1.0, rtol=1e-12)
    chances = np.exp(-nats(p_DNK, episodes).sum(axis=1))
    expected = [brute_force(episode, source) for episode in episodes.tolist()]
    np.testing.assert_allclose(chances, expected, rtol=1e-11)
    assert chances.sum() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.task)
def test_a_window_sees_its_segment_and_what_is_before(source: Source) -> None:
    episodes = draw(source, 3, 12, np.random.default_rng(0))
    p_DNK = windowed(source, episodes, segment=4, before=3)
    for place in range(12):
        first = max(0, place // 4 * 4 - 3)
        seen_DN = episodes[:, first : place + 1]
        np.testing.assert_allclose(p_DNK[:, place], predictions(source, seen_DN)[:, -1], rtol=1e-12)
    whole = windowed(source, episodes, segment=4, before=12)
    np.testing.assert_allclose(whole, predictions(source, episodes), rtol=1e-12)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.task)
def test_episodes_are_as_dear_as_their_source_says(source: Source) -> None:
    """The mean cost of what is drawn is the entropy, by the same predictions."""
    episodes = draw(source, 4000, 24, np.random.default_rng(1))
    p_DNK = predictions(source, episodes)
    entropy_DN = -(p_DNK * np.log(p_DNK)).sum(axis=2)
    difference_D = (nats(p_DNK, episodes) - entropy_DN).sum(axis=1)
    assert abs(difference_D.mean()) < 4 * difference_D.std() / np.sqrt(len(difference_D))
    # Another prior predicts these episodes worse.
    other = Source(source.task, source.symbols, 5 * source.prior, source.hazard)
    assert nats(predictions(other, episodes), episodes).mean() > nats(p_DNK, episodes).mean()


def test_files_hold_episodes_and_their_exact_costs(tmp_path: Path) -> None:
    probe = ProbeConfig("switching", symbols=3, length=20, documents=300, held_out=5, seed=4)
    probes.main(probe, tmp_path / "text")
    lines = {
        split: [json.loads(line) for line in (tmp_path / "text" / f"{split}.jsonl").open()]
        for split in ("train", "validation", "test")
    }
    assert [len(rows) for rows in lines.values()] == [300, 5, 5]
    assert all(len(row["text"]) == 20 and set(row["text"]) <= set("abc") for row in lines["train"])
    assert len({row["text"] for rows in lines.values() for row in rows}) > 300
    for row in lines["test"]:
        source = Source(**row["source"])
        assert source == probe.source
        symbols = np.array([["abc".index(letter) for letter in row["text"]]])
        costs = nats(predictions(source, symbols), symbols)[0]
        np.testing.assert_allclose(row["nats"], costs, rtol=1e-12)
    assert "nats" not in lines["train"][0]
    again = (tmp_path / "text" / "test.jsonl").read_bytes()
    probes.main(probe, tmp_path / "text")
    assert (tmp_path / "text" / "test.jsonl").read_bytes() == again


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("bernoulli", {"symbols": 3}, "a coin has two symbols"),
        ("markov", {"hazard": 0.1}, "hazard has an effect"),
        ("dirichlet", {"symbols": 27}, "symbols"),
        ("switching", {"hazard": 1.5}, "hazard"),
        ("dirichlet", {"prior": 0.0}, "prior"),
    ],
)
def test_impossible_sources_are_refused(task: SourceName, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeConfig(task, **changes)
