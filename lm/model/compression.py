"""Compression functions f_c: a block of old memory becomes a shorter one (paper, section 3.2).

A compression function is a module built from (config) whose forward maps the evicted block
[B, n, D] to [B, n / c, D]. To add one, write it and enter it in COMPRESSIONS.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from lm.model.config import CompressionName, ModelConfig


class ConvCompression(nn.Module):
    """One-dimensional convolution with kernel = stride = c and no bias (authors' code).

    Windows do not overlap, so it is one matrix product over windows laid end to end; the weight is
    [D, c D], the convolution kernel with time outside and channels inside.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rate = config.rate
        self.projection = nn.Linear(config.rate * config.width, config.width, bias=False)

    def forward(self, block_BnD: Tensor) -> Tensor:
        """Compress [B, n, D] to [B, n / c, D]."""
        lanes, slots, width = block_BnD.shape
        windows = block_BnD.reshape(lanes, slots // self.rate, self.rate * width)
        return F.linear(windows, self.projection.weight)


COMPRESSIONS: dict[CompressionName, Callable[[ModelConfig], nn.Module]] = {"conv": ConvCompression}
