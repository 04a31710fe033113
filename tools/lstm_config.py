"""An LSTM that is trained on a probe: settings that need no torch."""

from dataclasses import dataclass

from data.common.schema import Count, Positive, Size
from data.common.values import require_ranges


@dataclass(frozen=True)
class LSTMConfig:
    """The network, and how it learns: Adam, a cosine to zero, gradients clipped at norm 1."""

    width: Size = 80
    """Of embedding and state."""
    layers: Size = 2
    segment: Size = 32
    """Symbols that gradients go back through; an episode is a multiple of them."""
    lanes: Size = 32
    """Episodes read side by side."""
    steps: Size = 1000
    """Segments learnt from."""
    lr: Positive = 0.003
    seed: Count = 0
    """Of weights and of the order of episodes."""

    def __post_init__(self) -> None:
        require_ranges(self)

    @property
    def bytes(self) -> int:
        """Weights of the layers with their gradients and both of Adam's moments, in float32."""
        return 4 * 4 * 8 * self.layers * self.width * (self.width + 1)
