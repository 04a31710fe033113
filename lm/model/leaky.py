"""Inputs of attention that remember: each channel is a leaky average over time.

Of normed inputs x attention reads, and memory stores,

    y_t = sqrt(1 - a^2) x_t + a y_{t-1}

with a learnt share a between 0 and 1 for each channel. A query, a key and a value then know of the
tokens directly before their own, which with rotary positions is much of what a model of bytes has
to learn first (docs/results.md). The root keeps the variance of what norms make. What the next
segment goes on from is the newest slot of memory, so the average is carried through segments,
resets and decoding with no state of its own, and no cut of the stream changes it.

Shapes: B lanes, T tokens, D width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SLOWEST, FASTEST = 1.0, -4.0
"""Logits of the shares that the channels begin with, in even steps: 0.73 down to 0.02."""


class LeakyAverage(nn.Module):
    """A leaky average of each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.leak = nn.Parameter(torch.linspace(FASTEST, SLOWEST, width))
        """Logits of the shares a, [D]."""

    def forward(self, x_BTD: Tensor, before_BD: Tensor) -> Tensor:
        """Average on, [B, T, D].

        Args:
            x_BTD: normed inputs.
            before_BD: the average at the token before them; zero where nothing was read.
        """
        share_D = torch.sigmoid(self.leak)
        scaled = x_BTD * torch.sqrt(1 - share_D * share_D)
        averaged: Tensor = Recurrence.apply(scaled, share_D, before_BD)
        return averaged


class Recurrence(torch.autograd.Function):
    """y_t = x_t + a y_{t-1}, called as .apply(x_BTD, a_D, before_BD); no gradient reaches the last,
    as none reaches memory.
    """

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, share_D: Tensor, before_BD: Tensor) -> Tensor:
        """All y, [B, T, D]."""
        y_BTD = x_BTD.clone()
        y_BTD[:, 0] += share_D * before_BD
        powers, step = share_D, 1
        # After each round every y holds the last 2 step terms of its sum.
        while step < y_BTD.shape[1]:
            y_BTD[:, step:] += powers * y_BTD[:, :-step]
            powers, step = powers * powers, 2 * step
        ctx.save_for_backward(y_BTD, share_D, before_BD)
        return y_BTD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BTD: Tensor) -> tuple[Tensor, Tensor, None]:
        """The same recurrence from the last token to the first."""
        y_BTD, share_D, before_BD = ctx.saved_tensors
        total_BTD, powers, step = grad_BTD.clone(), share_D, 1
        while step < y_BTD.shape[1]:
            total_BTD[:, :-step] += powers * total_BTD[:, step:]
            powers, step = powers * powers, 2 * step
        grad_D = (total_BTD[:, 1:] * y_BTD[:, :-1]).sum((0, 1))
        return total_BTD, grad_D + (total_BTD[:, 0] * before_BD).sum(0), None
