"""The shape of a Compressive Transformer."""

from dataclasses import dataclass
from typing import Literal

CompressionName = Literal["conv"]
ReconstructionName = Literal["attention", "none"]
Activation = Literal["relu", "gelu"]


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of the model; lengths are in tokens or slots, per layer."""

    layers: int = 12
    """Number of layers l."""
    width: int = 512
    """Width d of the residual stream."""
    heads: int = 8
    """Attention heads; each has width / heads dimensions."""
    feedforward: int = 2048
    """Hidden units of each feed-forward sub-layer."""
    activation: Activation = "relu"
    """Non-linearity of the feed-forward sub-layer."""
    segment: int = 512
    """Tokens n_s that are read at once, and after which memory moves."""
    memory: int = 512
    """Slots n_m of ordinary memory in each layer."""
    compressed: int = 512
    """Slots n_cm of compressed memory in each layer; 0 gives a Transformer-XL."""
    rate: int = 4
    """Compression rate c: this many old memory slots become one compressed slot."""
    compression: CompressionName = "conv"
    """Compression function f_c; each layer has its own."""
    reconstruction: ReconstructionName = "attention"
    """Loss that trains the compression function."""
    tied: bool = True
    """Share one matrix between the token embedding and the output projection."""
    dropout: float = 0.0
    """Share dropped in training of embeddings, position encodings and sub-layer outputs."""

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "feedforward", "segment", "rate"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("memory", "compressed"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} must be at least 0, not {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(
                f"model.width must be a multiple of model.heads, not {self.width} over {self.heads}"
            )
        if self.width % 2:
            raise ValueError(
                f"model.width must be even (sines and cosines of positions), not {self.width}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout must be at least 0 and below 1, not {self.dropout}")
        if self.compressed and self.segment % self.rate:
            raise ValueError(
                f"model.segment must be a multiple of model.rate so that every evicted slot is "
                f"compressed, not {self.segment} over {self.rate}"
            )

    @property
    def head_width(self) -> int:
        """Dimensions of one attention head."""
        return self.width // self.heads

    @property
    def slots(self) -> int:
        """Slots of both memories together."""
        return self.compressed + self.memory

    @property
    def range(self) -> int:
        """Tokens that can influence a prediction: n_s + l (n_m + c n_cm) (paper, section 3.1)."""
        return self.layers * (self.memory + self.rate * self.compressed) + self.segment
