"""Token embedding and output projection over the whole vocabulary.

Shapes: B lanes, T tokens, n tokens of any lanes, D width, V vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from lm.model.model_config import ModelConfig

OPTIONS = getattr(nn, "LinearCrossEntropyOptions", None)
"""Of torch's chunked cross-entropy, from torch 2.13 on."""


def embedding_scale(config: ModelConfig) -> float:
    """What token embeddings are multiplied by."""
    scale = config.embedding_scale
    return config.width**0.5 if scale is None else scale


class Embedding(nn.Module):
    """Tokens to vectors, scaled (by sqrt(D), so that a tied matrix suits both its uses)."""

    def __init__(self, config: ModelConfig, vocabulary: int) -> None:
        super().__init__()
        self.scale = embedding_scale(config)
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
        time in the backward pass.
        """
        if targets_BT is None:
            return self.logits(hidden_BTD)
        hidden, targets = hidden_BTD.flatten(0, -2), targets_BT.flatten()
        make = self.nats if self.chunk is None else self.nats_by_chunks
        return make(hidden, targets).view(targets_BT.shape)

    def nats_by_chunks(self, hidden_nD: Tensor, targets_n: Tensor) -> Tensor:
        """The same as `nats`, with the logits of self.chunk tokens held at once."""
        assert self.chunk is not None
        parts = zip(hidden_nD.split(self.chunk), targets_n.split(self.chunk), strict=True)
        return torch.cat([checkpoint(self.nats, *part, use_reentrant=False) for part in parts])


class Head(VocabularyHead):
    """One matrix over the whole vocabulary."""

    def __init__(self, config: ModelConfig, vocabulary: int, tied: nn.Parameter | None) -> None:
        super().__init__(config)
        self.weight = nn.Parameter(torch.empty(vocabulary, config.width)) if tied is None else tied
        self.bias = nn.Parameter(torch.zeros(vocabulary)) if config.head_bias else None

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Unnormalised log-probabilities [B, T, V]."""
        return F.linear(hidden_BTD, self.weight, self.bias)

    def nats(self, hidden_nD: Tensor, targets_n: Tensor) -> Tensor:
        """Negative log-likelihoods of targets [n]."""
        return cross_entropy(self.logits(hidden_nD), targets_n)

    def nats_by_chunks(self, hidden_nD: Tensor, targets_n: Tensor) -> Tensor:
        """By torch's own function where there is one, which needs less memory for the gradient of
        the matrix. It gives half-precision numbers for half-precision inputs, too coarse for nats.
        """
        if OPTIONS is None or hidden_nD.dtype not in (torch.float32, torch.float64):
            return super().nats_by_chunks(hidden_nD, targets_n)
        return F.linear_cross_entropy(
            hidden_nD,
            self.weight,
            targets_n,
            linear_bias=self.bias,
            reduction="none",
            options=OPTIONS(batch_chunk_size=min(self.chunk or 1, len(hidden_nD))),
        )


def cross_entropy(logits_nV: Tensor, targets_n: Tensor) -> Tensor:
    """Negative log-likelihoods [n], in float32 at least."""
    if logits_nV.dtype != torch.float64:
        logits_nV = logits_nV.float()
    return F.cross_entropy(logits_nV, targets_n, reduction="none")
