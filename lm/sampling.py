"""Choosing the next token: pure functions on logits [B, V]."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn from the model's distribution."""

    temperature: float = 1.0
    """Divides the logits; 0 always takes the most probable token."""
    top_k: int | None = None
    """Draw only from this many most probable tokens."""
    top_p: float | None = None
    """Draw only from the fewest tokens whose probabilities reach this sum (nucleus sampling)."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be at least 0, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top-k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top-p must be above 0 and at most 1, not {self.top_p}")
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ValueError("top-k and top-p have no effect at temperature 0; leave them out")


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Give all but the k most probable tokens probability zero."""
    lowest = logits_BV.topk(min(k, logits_BV.shape[-1])).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < lowest, float("-inf"))


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Give all tokens outside the nucleus probability zero.

    The nucleus is the smallest set of most probable tokens whose probabilities sum to at least p;
    the token that crosses p belongs to it, so at least one remains.
    """
    ordered, index = logits_BV.sort(dim=-1, descending=True)
    probability = ordered.softmax(dim=-1)
    before = probability.cumsum(dim=-1) - probability
    dropped = torch.zeros_like(before, dtype=torch.bool).scatter(-1, index, before >= p)
    return logits_BV.masked_fill(dropped, float("-inf"))


def sample(logits_BV: Tensor, config: SamplingConfig, generator: torch.Generator) -> Tensor:
    """Draw one token per lane, [B] int64."""
    if config.temperature == 0:
        return logits_BV.argmax(dim=-1)
    logits = logits_BV.float() / config.temperature
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p is not None:
        logits = keep_top_p(logits, config.top_p)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]
