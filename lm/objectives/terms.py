"""Losses as named terms, and the one place where terms become a number to minimise.

A term is a sum and a count. Sums stay whole across segments, micro-batches and ranks until one
division by what all of them counted together, so every token of an update weighs the same.
Exported folders carry this file, so it knows nothing of where segments come from.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lm.model.transformer import SegmentOutput

Divisor = Literal["scored", "elements"]
"""What a term's sum is divided by: the tokens that an update scores, or the term's own count, as a
mean over the back-propagations of an update."""


class Term(NamedTuple):
    """A part of the loss, of some lanes and segments."""

    total: Tensor
    """scalar"""
    counted: Tensor
    """scalar"""
    divisor: Divisor = "elements"


def add_terms(sums: dict[str, Term], more: Mapping[str, Term]) -> None:
    """Add the terms of another segment to sums by name."""
    for name, term in more.items():
        before = sums.get(name)
        if before is not None:
            term = Term(before.total + term.total, before.counted + term.counted, term.divisor)
        sums[name] = term


def segment_loss(output: SegmentOutput) -> Tensor:
    """The loss of one segment alone: mean nats of its targets, and what the model adds.

    Args:
        output: of a forward pass with targets.
    """
    nats = output.predictions
    likelihood = Term(nats.sum(), torch.tensor(nats.numel(), device=nats.device))
    added = {name: Term(*loss) for name, loss in output.auxiliary.items()}
    return total_loss({"nats": likelihood} | added)


def total_loss(
    terms: Mapping[str, Term],
    factors: Mapping[str, float | Tensor] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """The number to minimise: sums times factors times weights.

    Args:
        terms: by name.
        factors: what each sum is multiplied by; none: one over its own count, so that it is a mean.
        weights: of the terms that are to count more or less than 1.
    """
    parts = []
    for name, term in terms.items():
        if factors is None:
            factor: float | Tensor = 1 / term.counted.clamp(min=1).to(term.total.dtype)
        else:
            factor = factors[name]
        if isinstance(factor, Tensor):
            factor = factor.to(term.total.dtype)
        weight = 1.0 if weights is None else weights.get(name, 1.0)
        parts.append(term.total * (factor * weight))
    loss = parts[0]
    for part in parts[1:]:
        loss = loss + part
    return loss
