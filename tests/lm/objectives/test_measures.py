"""Divergences against torch's, closed forms of their gradients, and mixtures of probabilities."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, kl_divergence

from lm.objectives.measures import (
    agreement,
    both_ways,
    divergence,
    jensen_shannon,
    log_probabilities,
    mixture,
)


def logs(number: int, tokens: int = 5, size: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(number, tokens, size, generator=generator, dtype=torch.float64)
    return list(log_probabilities(3 * draws))


def test_divergences_are_torch_s() -> None:
    p, q = logs(2)
    there = kl_divergence(Categorical(logits=p), Categorical(logits=q))
    back = kl_divergence(Categorical(logits=q), Categorical(logits=p))
    torch.testing.assert_close(divergence(p, q), there)
    torch.testing.assert_close(both_ways(p, q), there + back)
    assert (divergence(p, q) > 0).all() and divergence(p, p).abs().max() == 0
    assert both_ways(p, p).abs().max() == 0


def test_agreement_is_the_mean_over_ordered_pairs() -> None:
    three = logs(3)
    expected = torch.zeros(5, dtype=torch.float64)
    for p in three:
        for q in three:
            if p is not q:
                expected += kl_divergence(Categorical(logits=p), Categorical(logits=q)) / 6
    torch.testing.assert_close(agreement(three), expected)


def test_what_is_certain_or_impossible_is_counted() -> None:
    certain = torch.tensor([0.0, -math.inf, -math.inf], dtype=torch.float64)
    even = torch.full((3,), 1 / 3, dtype=torch.float64).log().requires_grad_()
    assert divergence(certain, even).item() == pytest.approx(math.log(3))
    assert divergence(even, certain).item() == math.inf
    divergence(certain, even).backward()
    assert even.grad is not None and even.grad.tolist() == [-1.0, 0.0, 0.0]
    apart = certain.flip(0)
    assert jensen_shannon(certain, apart).item() == pytest.approx(math.log(2))


def test_mixtures_are_of_probabilities() -> None:
    p, q = logs(2)
    mixed = mixture(p, q, 0.3)
    torch.testing.assert_close(mixed.exp(), 0.7 * p.exp() + 0.3 * q.exp())
    assert torch.equal(mixture(p, q, 1.0), q) and torch.equal(mixture(p, q, 0.0), p)
    expected = 0.7 * divergence(p, mixed) + 0.3 * divergence(q, mixed)
    torch.testing.assert_close(jensen_shannon(p, q, 0.3), expected)
    assert (jensen_shannon(p, q) <= math.log(2)).all()


def test_gradients_are_the_closed_forms() -> None:
    """Of logits: forward p_S - p_T, reverse p_S (log p_S / p_T - KL); a mixture's is the share
    that each part has in what happened.
    """
    (teacher,) = logs(1)
    student = torch.randn(5, 7, dtype=torch.float64).requires_grad_()
    own = log_probabilities(student)
    (forward,) = torch.autograd.grad(divergence(teacher, own).sum(), student)
    own = log_probabilities(student)
    torch.testing.assert_close(forward, own.exp() - teacher.exp())
    (reverse,) = torch.autograd.grad(divergence(own, teacher).sum(), student, retain_graph=True)
    kl = divergence(own, teacher)[:, None]
    torch.testing.assert_close(reverse, own.exp() * (own - teacher - kl))
    nats = -mixture(teacher, own, 0.4)[:, 2]
    (mixed,) = torch.autograd.grad(nats.sum(), student, retain_graph=True)
    share = 0.4 * own[:, 2].exp() / (0.4 * own[:, 2].exp() + 0.6 * teacher[:, 2].exp())
    target = torch.nn.functional.one_hot(torch.tensor(2), 7)
    torch.testing.assert_close(mixed, share[:, None] * (own.exp() - target))


def test_half_precision_is_widened() -> None:
    assert log_probabilities(torch.zeros(3, dtype=torch.bfloat16)).dtype == torch.float32
