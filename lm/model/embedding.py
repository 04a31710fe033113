"""Token embedding and output projection."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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


class Head(nn.Module):
    """Hidden states to log-probabilities of the next token."""

    def __init__(self, config: ModelConfig, vocabulary: int, tied: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, config.width)) if tied is None else tied
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Unnormalised log-probabilities [B, T, V]."""
        return F.linear(hidden_BTD, self.weight, self.bias)

    def forward(self, hidden_BTD: Tensor, targets_BT: Tensor | None = None) -> Tensor:
        """Logits [B, T, V], or, with targets, their negative log-likelihoods in nats [B, T]."""
        logits = self.logits(hidden_BTD)
        if targets_BT is None:
            return logits
        nats = F.cross_entropy(
            logits.flatten(0, -2).float(), targets_BT.flatten(), reduction="none"
        )
        return nats.view(targets_BT.shape)
