"""Choosing the next token: pure functions on logits [B, V].

Penalties and filters apply in transformers' order: repetition, temperature, top-k, top-p, min-p,
typical. Everything is computed in float64: sums of tens of thousands of probabilities in float32
reach 1 before the last tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lm.inference.inference_config import SamplingConfig
from lm.model.components import exact_device


def penalise_repetition(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Make the tokens where `seen_BV` is true less probable, or with a penalty below 1 more."""
    lowered = torch.where(logits_BV < 0, logits_BV * penalty, logits_BV / penalty)
    return torch.where(seen_BV, lowered, logits_BV)


def keep_top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Give all but the k most probable tokens, and their equals, probability zero."""
    lowest = logits_BV.topk(min(k, logits_BV.shape[-1])).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < lowest, float("-inf"))


def keep_top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Give all tokens outside the nucleus probability zero.

    The nucleus is the smallest set of most probable tokens whose probabilities sum to at least p;
    the token that crosses p belongs to it, so at least one remains. With p = 1 all remain.
    """
    return _keep_first(logits_BV, -logits_BV, p)


def keep_min_p(logits_BV: Tensor, p: float) -> Tensor:
    """Give tokens less than p times as probable as the most probable one probability zero."""
    probability = logits_BV.double().softmax(dim=-1)
    lowest = p * probability.amax(dim=-1, keepdim=True)
    return logits_BV.masked_fill(probability < lowest, float("-inf"))


def keep_typical(logits_BV: Tensor, p: float) -> Tensor:
    """Give all but the most typical tokens, whose probabilities reach p, probability zero.

    A token is the more typical the closer its information is to the entropy.
    """
    log_BV = logits_BV.double().log_softmax(dim=-1)
    entropy = -(log_BV.exp() * log_BV).nansum(dim=-1, keepdim=True)
    return _keep_first(logits_BV, (-log_BV - entropy).abs(), p)


def _keep_first(logits_BV: Tensor, order_BV: Tensor, p: float) -> Tensor:
    """Keep the first tokens in rising order until their probabilities reach p; all if p is 1."""
    if p >= 1:
        return logits_BV
    index = order_BV.argsort(dim=-1, stable=True)
    reached = logits_BV.double().softmax(dim=-1).gather(-1, index).cumsum(dim=-1) >= p
    # The token that reaches p is kept, so what is dropped begins one later.
    late = torch.zeros_like(reached)
    late[..., 1:] = reached[..., :-1]
    dropped = torch.zeros_like(reached).scatter(-1, index, late)
    return logits_BV.masked_fill(dropped, float("-inf"))


def adjusted(logits_BV: Tensor, config: SamplingConfig, seen_BV: Tensor) -> Tensor:
    """Logits of the distribution that tokens are drawn from, in float64.

    Args:
        logits_BV: of the model.
        config: penalties and filters; at temperature 0 the penalty alone applies.
        seen_BV: bool, the tokens of the prompt and of the text so far.
    """
    logits = logits_BV.double()
    if config.repetition_penalty is not None:
        logits = penalise_repetition(logits, seen_BV, config.repetition_penalty)
    if config.temperature == 0:
        return logits
    if config.temperature != 1:
        logits = logits / config.temperature
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    for keep, share in (
        (keep_top_p, config.top_p),
        (keep_min_p, config.min_p),
        (keep_typical, config.typical),
    ):
        if share is not None:
            logits = keep(logits, share)
    return logits


def pick(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """The token at a point of each distribution's cumulative sum, [B] int64.

    Args:
        logits_BV: unnormalised log-probabilities.
        uniform_B: float64 from 0 up to but not including 1.
    """
    cumulative = logits_BV.double().softmax(dim=-1).cumsum(dim=-1)
    target = uniform_B[:, None].to(cumulative.device) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


class Sampler:
    """Draws tokens for lanes that each have random numbers of their own, and knows what was read.

    The random numbers are made on the CPU, so a lane draws the same in any company.
    """

    def __init__(self, config: SamplingConfig, seeds: Sequence[int], seen_BV: Tensor) -> None:
        """Begin to draw.

        Args:
            config: how.
            seeds: one for each lane.
            seen_BV: bool, tokens that each lane has read.
        """
        self.config, self.device = config, exact_device(seen_BV.device)
        self.seen_BV = seen_BV.clone().to(self.device)
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """Draw the next token of each lane, [B] int64, and count it as read.

        ValueError where the logits are no distribution.
        """
        if not logits_BV.amax(dim=-1).isfinite().all():
            raise ValueError(
                "the model gives no probabilities but NaN or infinity, so its weights are damaged "
                "or its training went wrong: use another checkpoint"
            )
        logits = adjusted(logits_BV.to(self.device), self.config, self.seen_BV)
        if self.config.temperature == 0:
            token_B = logits.argmax(dim=-1)
        else:
            # 24 random bits: a number that float64 cannot round up to 1 in a product.
            draws = [torch.rand((), generator=generator) for generator in self.generators]
            token_B = pick(logits, torch.stack(draws).double())
        self.seen_BV.scatter_(1, token_B[:, None], True)
        return token_B.to(logits_BV.device)

    def keep(self, lanes: Sequence[int]) -> None:
        """Go on with some of the lanes only."""
        self.generators = [self.generators[lane] for lane in lanes]
        self.seen_BV = self.seen_BV[list(lanes)]
