"""Token embedding and output projection over the whole vocabulary.

Shapes: B lanes, T tokens, n tokens of any lanes, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lm.model.config import ModelConfig


class Embedding(nn.Module):
    """Tokens to vectors, scaled by sqrt(D) so that a tied matrix suits both its uses."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.scale = config.width**0.5
        self.weight = nn.Parameter(torch.empty(vocabulary, config.width))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """[B, T] ids -> [B, T, D]."""
        return F.embedding(tokens_BT, self.weight) * self.scale


class VocabularyHead(nn.Module):
    """Hidden states to log-probabilities of the next token."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.chunk = config.head_chunk

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Unnormalised log-probabilities [B, T, V]."""
        raise NotImplementedError

    def nats(self, hidden_nD: Tensor, targets_n: Tensor) -> Tensor:
        """Negative log-likelihoods of targets [n]."""
        raise NotImplementedError

    def forward(self, hidden_BTD: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """Logits [B, T, V], or, with targets, their negative log-likelihoods in nats [B, T].

        With config.head_chunk the logits of that many tokens are held at once, and made a second
        time in the backward pass. torch's linear_cross_entropy saves that second time, but knows
        sums and means only, and documents and lanes are weighed by token here.
        """
        if targets_BT is None:
            return self.logits(hidden_BTD)
        hidden, targets = hidden_BTD.flatten(0, -2), targets_BT.flatten()
        if self.chunk is None:
            nats = self.nats(hidden, targets)
        else:
            parts = zip(hidden.split(self.chunk), targets.split(self.chunk), strict=True)
            nats = torch.cat([checkpoint(self.nats, *part, use_reentrant=False) for part in parts])
        return nats.view(targets_BT.shape)


class Head(VocabularyHead):
    """One matrix over the whole vocabulary."""

    def __init__(self, config: ModelConfig, vocabulary: int, tied: nn.Parameter | None) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(vocabulary, config.width)) if tied is None else tied
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Unnormalised log-probabilities [B, T, V]."""
        return F.linear(hidden_BTD, self.weight, self.bias)

    def nats(self, hidden_nD: Tensor, targets_n: Tensor) -> Tensor:
        """Negative log-likelihoods of targets [n]."""
        return cross_entropy(self.logits(hidden_nD), targets_n)


def cross_entropy(logits_nV: Tensor, targets_n: Tensor) -> Tensor:
    """Negative log-likelihoods [n], in float32 at least."""
    if logits_nV.dtype != torch.float64:
        logits_nV = logits_nV.float()
    return F.cross_entropy(logits_nV, targets_n, reduction="none")
