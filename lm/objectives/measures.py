"""How far probabilities of the same token are from each other: pure functions of log-probabilities.

All are in nats, and in float32 at least if what they are given is. Probabilities may be zero.

Shapes: V vocabulary; P distributions of one token.
"""

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor


def log_probabilities(logits: Tensor) -> Tensor:
    """Of unnormalised ones [..., V]; in float32 at least."""
    return (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(dim=-1)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) = sum of p (log p - log q), of [..., V] to [...]."""
    likely = p > -torch.inf
    # Chosen before the difference is taken, so that no gradient is NaN.
    p, q = torch.where(likely, p, 0.0), torch.where(likely, q, 0.0)
    return (torch.where(likely, p.exp(), 0.0) * (p - q)).sum(dim=-1)


def both_ways(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) = sum of (p - q) (log p - log q), of [..., V] to [...].

    No term of the sum is below zero, whatever is rounded. Probabilities must not be zero.
    """
    return ((p.exp() - q.exp()) * (p - q)).sum(dim=-1)


def agreement(logs: Sequence[Tensor]) -> Tensor:
    """Mean of the divergences of all ordered pairs of P >= 2 distributions, [...].

    What Perception-Prediction-Reaction agents (Stooke et al., arXiv 2006.15223) hold their three
    policies together with. Probabilities must not be zero.
    """
    pairs = [both_ways(p, q) for p, q in combinations(logs, 2)]
    return torch.stack(pairs).sum(dim=0) / (len(logs) * (len(logs) - 1))


def mixture(p: Tensor, q: Tensor, share: float | Tensor) -> Tensor:
    """log((1 - share) p + share q), of [..., V]: of probabilities, not of their logarithms."""
    share = torch.as_tensor(share, dtype=p.dtype, device=p.device)
    return torch.logaddexp(p + torch.log1p(-share), q + share.log())


def jensen_shannon(p: Tensor, q: Tensor, share: float = 0.5) -> Tensor:
    """(1 - share) KL(p || m) + share KL(q || m) with m = (1 - share) p + share q, of [..., V] to
    [...]; at a half at most log 2.
    """
    middle = mixture(p, q, share)
    return (1 - share) * divergence(p, middle) + share * divergence(q, middle)
