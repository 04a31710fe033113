"""Adaptive input (Baevski & Auli, arXiv 1809.10853) and adaptive softmax (Grave et al.,
arXiv 1609.04309) for large vocabularies whose ids are ordered from frequent to rare.

Cut-offs split the vocabulary into clusters, the same at both ends. Cluster i has vectors of
D / divisor^i dimensions. The softmax first chooses between the words of cluster 0 and the other
clusters, and then within a cluster; a word of a rare cluster costs little unless it occurs.

Shapes: B lanes, T tokens, n tokens of any lanes, D width, D_i width and V_i words of cluster i.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm.model.components import VocabularyHead, cross_entropy, embedding_scale
from lm.model.model_config import ModelConfig


def cluster_bounds(config: ModelConfig, vocabulary: int) -> list[tuple[int, int]]:
    """First id of each cluster and the first after it.

    Raises:
        ValueError: a cut-off is not inside the vocabulary.
    """
    assert config.cutoffs is not None
    edges = [0, *config.cutoffs, vocabulary]
    if any(high <= low for low, high in pairwise(edges)):
        raise ValueError(
            f"model.cutoffs must lie inside the vocabulary of {vocabulary} words, not "
            f"{list(config.cutoffs)}"
        )
    return list(pairwise(edges))


def cluster_matrices(config: ModelConfig, vocabulary: int) -> nn.ParameterList:
    """Vectors [V_i, D_i] of every cluster's words."""
    return nn.ParameterList(
        torch.empty(high - low, config.cluster_width(index))
        for index, (low, high) in enumerate(cluster_bounds(config, vocabulary))
    )


class AdaptiveEmbedding(nn.Module):
    """Tokens to vectors whose size falls with their cluster, projected to the width of the model
    and scaled by sqrt(D). Words of cluster 0 have that width already.
    """

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.scale = embedding_scale(config)
        self.bounds = cluster_bounds(config, vocabulary)
        self.clusters = cluster_matrices(config, vocabulary)
        self.projections = nn.ModuleList(
            nn.Linear(config.cluster_width(index), config.width, bias=False)
            for index in range(1, len(self.bounds))
        )

    @property
    def weight(self) -> Tensor:
        """The vectors of the most frequent words, [V_0, D]."""
        return self.clusters[0]

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] ids -> [B, T, D].

        Every token is looked up in every cluster and the right one kept, so shapes do not depend on
        the text; the projections are small.
        """
        hidden = self.clusters[0].new_zeros(())
        for index, (low, high) in enumerate(self.bounds):
            inside = (tokens_BT >= low) & (tokens_BT < high)
            vectors = F.embedding((tokens_BT - low).clamp(0, high - low - 1), self.clusters[index])
            if index:
                vectors = self.projections[index - 1](vectors)
            hidden = torch.where(inside[..., None], vectors, hidden)
        return hidden * self.scale


class AdaptiveHead(VocabularyHead):
    """Adaptive softmax; its logits are log-probabilities, which sum to one as they are."""

    def __init__(self, config: ModelConfig, vocabulary: int, tied: nn.ParameterList | None) -> None:
        super().__init__(config)
        self.bounds = cluster_bounds(config, vocabulary)
        self.clusters = cluster_matrices(config, vocabulary) if tied is None else tied
        self.bias = nn.Parameter(torch.zeros(vocabulary))
        others = range(1, len(self.bounds))
        self.projections = nn.ModuleList(
            nn.Linear(config.width, config.cluster_width(index), bias=False) for index in others
        )
        if others:
            self.choice = nn.Linear(config.width, len(others))

    def _first(self, hidden: Tensor) -> Tensor:
        """Scores of the words of cluster 0 and of each other cluster, [..., V_0 + clusters - 1]."""
        _, high = self.bounds[0]
        words = F.linear(hidden, self.clusters[0], self.bias[:high])
        return torch.cat([words, self.choice(hidden)], dim=-1) if self.projections else words

    def _within(self, index: int, hidden: Tensor) -> Tensor:
        """Scores of the words of another cluster, [..., V_i]."""
        low, high = self.bounds[index]
        projected = self.projections[index - 1](hidden)
        return F.linear(projected, self.clusters[index], self.bias[low:high])

    def _inside(self, targets_n: Tensor, low: int, high: int) -> Tensor:
        """Which targets are words of a cluster; where nothing is computed (on "meta", for plans),
        as many as a text has by Zipf's law.
        """
        if targets_n.is_meta:
            share = math.log(high / low) / math.log(self.bounds[-1][1])
            return targets_n.new_zeros(math.ceil(share * len(targets_n)))
        return ((targets_n >= low) & (targets_n < high)).nonzero()[:, 0]

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Log-probabilities [B, T, V]."""
        first = self._first(hidden_BTD).log_softmax(dim=-1)
        words = self.bounds[0][1]
        parts = [first[..., :words]]
        for index in range(1, len(self.bounds)):
            cluster = first[..., words + index - 1, None]
            parts.append(cluster + self._within(index, hidden_BTD).log_softmax(dim=-1))
        return torch.cat(parts, dim=-1)

    def nats(self, hidden_nD: Tensor, targets_n: Tensor) -> Tensor:
        """Negative log-likelihoods of targets [n]; a rare cluster is computed where it occurs."""
        words, entry = self.bounds[0][1], targets_n
        for index, (low, high) in enumerate(self.bounds[1:]):
            inside = (targets_n >= low) & (targets_n < high)
            entry = torch.where(inside, words + index, entry)
        nats = cross_entropy(self._first(hidden_nD), entry)
        for index, (low, high) in enumerate(self.bounds[1:], start=1):
            rows = self._inside(targets_n, low, high)
            scores = self._within(index, hidden_nD[rows])
            nats = nats.index_add(0, rows, cross_entropy(scores, targets_n[rows] - low))
        return nats
