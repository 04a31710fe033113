"""Random sources with unknown parameters, and the exact Bayes prediction of what they emit.

A model that minimises its loss over episodes of such a source comes to predict as Bayes' rule does
(Ortega et al. 2019, "Meta-learning of sequential strategies"), so the distance to the exact
prediction says what a memory has lost.

Shapes: D documents, N symbols of each, K symbols of the alphabet. All in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from data.common.schema import Positive

SourceName = Literal["bernoulli", "dirichlet", "markov", "switching"]


@dataclass(frozen=True)
class Source:
    """How the symbols of an episode come about.

    | task | parameters of an episode | next symbol |
    |---|---|---|
    | bernoulli | probability p ~ Beta(prior, prior) | a coin |
    | dirichlet | p ~ Dirichlet(prior, ..., prior) | a die |
    | markov | such a p for each symbol | of the row of the symbol before; the first is uniform |
    | switching | as dirichlet | a die that is replaced by a new one at random |
    """

    task: SourceName = "bernoulli"
    """bernoulli, dirichlet, markov or switching."""
    symbols: Annotated[int, Field(ge=2, le=26)] = 2
    """Size K of the alphabet, the first letters; a coin has two."""
    prior: Positive = 1.0
    """Of the Dirichlet distribution: 1 is Laplace's rule, 0.5 that of Krichevsky and Trofimov."""
    hazard: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Probability that the die is replaced before a symbol; only of switching, there 1/64 if not
    given."""

    def __post_init__(self) -> None:
        if self.task == "bernoulli" and self.symbols != 2:
            raise ValueError("a coin has two symbols; use --task dirichlet for more")
        if self.task != "switching" and self.hazard is not None:
            raise ValueError("hazard has an effect in --task switching only")

    @property
    def changes(self) -> float:
        """The hazard that counts."""
        return self.hazard or 1 / 64


def draw(source: Source, documents: int, length: int, draws: np.random.Generator) -> np.ndarray:
    """Episodes [D, N] of symbols from 0 on, int64, each with parameters of its own."""
    dice = (documents, source.symbols)
    prior = np.full(source.symbols, source.prior)
    rows = source.symbols if source.task == "markov" else 1
    p_DRK = draws.dirichlet(prior, size=(documents, rows))
    symbols_DN = np.empty((documents, length), dtype=np.int64)
    each = np.arange(documents)
    for place in range(length):
        if source.task == "switching" and place:
            new_D = draws.random(documents) < source.changes
            p_DRK[new_D, 0] = draws.dirichlet(prior, size=int(new_D.sum()))
        if source.task != "markov":
            p_DK = p_DRK[:, 0]
        elif place:
            p_DK = p_DRK[each, symbols_DN[:, place - 1]]
        else:
            p_DK = np.full(dice, 1 / source.symbols)
        above_DK = draws.random(documents)[:, None] > p_DK.cumsum(axis=1)[:, :-1]
        symbols_DN[:, place] = above_DK.sum(axis=1)
    return symbols_DN


def predictions(source: Source, symbols_DN: np.ndarray) -> np.ndarray:
    """Probability [D, N, K] of every symbol at every place, given those before it."""
    return EXACT[source.task](source, symbols_DN)


def windowed(source: Source, symbols_DN: np.ndarray, segment: int, before: int) -> np.ndarray:
    """As `predictions`, of one who sees the segment that a place is in, and `before` symbols more.

    What it sees of a Markov chain is the transitions inside that window.
    """
    found = []
    for start in range(0, symbols_DN.shape[1], segment):
        first = max(0, start - before)
        seen_DN = symbols_DN[:, first : start + segment]
        found.append(predictions(source, seen_DN)[:, start - first :])
    return np.concatenate(found, axis=1)


def rule(counts: np.ndarray, prior: float) -> np.ndarray:
    """Prediction [..., K] from counts [..., K] under a symmetric Dirichlet prior."""
    smoothed: np.ndarray = counts + prior
    return smoothed / smoothed.sum(axis=-1, keepdims=True)


def one_hot(source: Source, symbols_DN: np.ndarray) -> np.ndarray:
    """[D, N, K], 1 at each symbol."""
    return np.eye(source.symbols)[symbols_DN]


def from_counts(source: Source, symbols_DN: np.ndarray) -> np.ndarray:
    """Of a die: counts of all symbols so far are all that matters."""
    is_DNK = one_hot(source, symbols_DN)
    return rule(is_DNK.cumsum(axis=1) - is_DNK, source.prior)


def from_transitions(source: Source, symbols_DN: np.ndarray) -> np.ndarray:
    """Of a Markov chain: counts in the row of the symbol before."""
    documents, length = symbols_DN.shape
    found_DNK = np.full((documents, length, source.symbols), 1 / source.symbols)
    counts_DKK = np.zeros((documents, source.symbols, source.symbols))
    each = np.arange(documents)
    for place in range(1, length):
        before_D, here_D = symbols_DN[:, place - 1], symbols_DN[:, place]
        found_DNK[:, place] = rule(counts_DKK[each, before_D], source.prior)
        counts_DKK[each, before_D, here_D] += 1
    return found_DNK


def from_run_lengths(source: Source, symbols_DN: np.ndarray) -> np.ndarray:
    """Of a die that is replaced: one posterior for each place r at which the last die may have
    come, by the recursion over run lengths; O(N^2).
    """
    is_DNK = one_hot(source, symbols_DN)
    documents, length, _ = is_DNK.shape
    counts_DRK = np.zeros_like(is_DNK)
    weight_DR = np.zeros((documents, length))
    weight_DR[:, 0] = 1.0
    found = np.empty_like(is_DNK)
    for place in range(length):
        live = slice(place + 1)
        if place:
            weight_DR[:, :place] *= 1 - source.changes
            weight_DR[:, place] = source.changes
        p_DRK = rule(counts_DRK[:, live], source.prior)
        found[:, place] = (weight_DR[:, live, None] * p_DRK).sum(axis=1)
        seen_DK = is_DNK[:, place]
        weight_DR[:, live] *= (p_DRK * seen_DK[:, None]).sum(axis=2)
        weight_DR[:, live] /= weight_DR[:, live].sum(axis=1, keepdims=True)
        counts_DRK[:, live] += seen_DK[:, None]
    return found


EXACT: dict[SourceName, Callable[[Source, np.ndarray], np.ndarray]] = {
    "bernoulli": from_counts,
    "dirichlet": from_counts,
    "markov": from_transitions,
    "switching": from_run_lengths,
}


def nats(p_DNK: np.ndarray, symbols_DN: np.ndarray) -> np.ndarray:
    """What a prediction costs at every place, [D, N]."""
    cost: np.ndarray = -np.log(np.take_along_axis(p_DNK, symbols_DN[..., None], axis=2)[..., 0])
    return cost
