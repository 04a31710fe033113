"""What keeps the residual stream's scale: layer norm or RMS norm."""

from torch import nn

from lm.model.config import ModelConfig


def make_norm(config: ModelConfig) -> nn.Module:
    """A norm over the width of the model, [..., D] -> [..., D]."""
    if config.norm_kind == "rms":
        return nn.RMSNorm(config.width, config.norm_epsilon)
    return nn.LayerNorm(config.width, config.norm_epsilon)
