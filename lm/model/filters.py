"""A bank of leaky integrators along the text, which reach further than any memory.

Shapes: B lanes, T tokens of a segment, D width, P filters.
"""

import math

import torch
from torch import Tensor, nn

from lm.model.components import Linear, Recurrence, exact_device, wide
from lm.model.memory import LayerMemory
from lm.model.model_config import ModelConfig


class FilterBank(nn.Module):
    """Leaky integrators with fixed time constants beside attention, with learnt maps to
    them and from them.

    Of the inputs x of attention each filter makes

        u = relu(W x),   m_t = g m_{t-1} + sqrt(1 - g^2) u_t,   g = exp(-1 / time constant)

    and another map of m, which begins at zero, is added to what attention gives (Low-pass Recurrent
    Neural Networks, Stepleton et al., arXiv 1805.04955; a state space layer with fixed diagonal
    decay). The root is the unit that each filter is kept in: with the paper's 1 - g those of
    thousands of tokens would hold numbers too small for the map behind them to learn from; the root
    keeps the variance of noise. What is always there would fill a slow filter, sqrt(2 time
    constant) times as much as of one token; the rectifier lets a filter hear nothing of it
    (docs/papers.md). Time constants are log-spaced from the longest down to one token.

    What the filters hold is carried from segment to segment without gradient. Its cost does not
    depend on how far they reach, and since they are fixed, what they hold at the start of a segment
    tells of causes long before it: maps learn to read what no gradient reaches.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.number, self.longest = config.filters, config.filter_longest
        self.write = Linear(config.width, config.filters, bias=False)
        self.read = Linear(config.filters, config.width, bias=False)

    def init(self, like_BD: Tensor) -> dict[str, Tensor]:
        """Filters of lanes that have read nothing, by name; see PinnedMemory.init.

        They are float32 where weights are narrower: slow ones move by less than bfloat16 can tell.
        """
        return {"filters": like_BD.new_zeros(len(like_BD), self.number, dtype=wide(like_BD.dtype))}

    def before(self, kept: LayerMemory, read_B: Tensor) -> Tensor:
        """What the filters hold before a segment, [B, P].

        Args:
            kept: what the layer keeps.
            read_B: tokens that each lane has read; those of none hold nothing.
        """
        return torch.where((read_B > 0)[:, None], kept["filters"].detach(), 0.0)

    def times(self, device: torch.device) -> Tensor:
        """Time constants in tokens, [P] float64, longest first."""
        logs = torch.linspace(
            math.log(self.longest), 0.0, self.number, dtype=torch.float64, device=device
        )
        return logs.exp()

    def forward(
        self, x_BTD: Tensor, before_BP: Tensor, hidden_B: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What is read of the filters, [B, T, D], and what they hold after each token, [B, T, P].

        Args:
            x_BTD: inputs of attention.
            before_BP: what the filters hold before them.
            hidden_B: lanes in which that is not read, though it is held on; bool, none: no lane.
        """
        u_BTP = torch.relu(self.write(x_BTD)).to(before_BP.dtype)
        # The decay of the slowest filters is next to 1.
        rate_P = 1 / self.times(exact_device(x_BTD.device))
        share_P, gain_P = torch.exp(-rate_P), torch.sqrt(-torch.expm1(-2 * rate_P))
        share_P, gain_P = (part.to(u_BTP.dtype).to(u_BTP.device) for part in (share_P, gain_P))
        unseen_BP = None if hidden_B is None else before_BP * hidden_B[:, None]
        seen_BP = before_BP if unseen_BP is None else before_BP - unseen_BP
        levels_BTP: Tensor = Recurrence.apply(u_BTP * gain_P, share_P, seen_BP)
        read_BTD: Tensor = self.read(levels_BTP.to(x_BTD.dtype))
        if unseen_BP is not None:
            tokens = torch.arange(1, x_BTD.shape[1] + 1, device=x_BTD.device)
            levels_BTP = levels_BTP + share_P ** tokens[:, None] * unseen_BP[:, None]
        return read_BTD, levels_BTP
