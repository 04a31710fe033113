"""Which readings of a segment are made, and what training makes of them: without torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from data.common.schema import Size
from data.common.values import require_ranges
from lm.model.model_config import ModelConfig

Weight = Annotated[float, Field(ge=0)]
SECTION = "training.readings"


@dataclass(frozen=True)
class ReadingsConfig:
    """Further readings of each segment by the same weights, beside the full one, which alone is
    scored and whose memory moves on. Each costs about as much as the full one.
    """

    local: Literal["segment", "memory"] | None = None
    """A reading without long memory: of the segment alone, or of segment and memory without
    compressed memory."""
    far: bool = False
    """A reading of compressed memory alone: tokens of the segment and memory are not seen."""
    again: bool = False
    """A second full reading under other dropout (R-Drop, Liang et al., arXiv 2106.14448)."""
    every: Size = 1
    """Lanes of which one has the further readings, another at each step; a divisor of the lanes
    that a rank reads at once. What they add to the loss counts so many times."""
    nats: Weight = 0.0
    """Weight of the further readings' own negative log-likelihoods."""
    agreement: Weight = 0.0
    """Weight of the mean divergence KL(p || q) over all ordered pairs of readings, with a gradient
    to both sides."""
    default: Weight = 0.0
    """Weight of KL(full || local), with a gradient to both sides: the price of long memory."""
    hide: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of lanes, drawn anew for each segment, that do not see their memories in the full
    reading (memory dropout)."""

    def __post_init__(self) -> None:
        require_ranges(self, SECTION)
        if self.further:
            pass
        elif given := [n for n in ("nats", "agreement", "default") if getattr(self, n)]:
            raise ValueError(
                f"{SECTION}.{given[0]} has no effect without a further reading; set "
                f"{SECTION}.local, far or again, or leave it out"
            )
        elif self.every > 1:
            raise ValueError(
                f"{SECTION}.every has no effect without a further reading; set {SECTION}.local, "
                "far or again, or leave it out"
            )
        if self.default and self.local is None:
            raise ValueError(
                f"{SECTION}.default compares the full reading with the local one; set "
                f"{SECTION}.local to segment or memory"
            )

    @property
    def further(self) -> tuple[str, ...]:
        """Names of the readings beside the full one."""
        there = {"local": self.local is not None, "far": self.far, "again": self.again}
        return tuple(name for name, is_there in there.items() if is_there)

    def __bool__(self) -> bool:
        return bool(self.further or self.hide)

    @property
    def lanes(self) -> float:
        """Lanes that are read for each lane of text."""
        return 1 + len(self.further) / self.every

    def check(self, model: ModelConfig) -> None:
        """See that a model has what is to be hidden or read.

        Raises:
            ValueError: it has not.
        """
        if (self.far or self.local == "memory") and not model.compressed:
            name = "far" if self.far else "local memory"
            raise ValueError(
                f"{SECTION}.{name} needs a compressed memory; set model.compressed above 0"
            )
        if (self.local or self.hide) and not model.slots:
            name = "local" if self.local else "hide"
            raise ValueError(
                f"{SECTION}.{name} has no effect without memory; set model.memory above 0"
            )
        if self.hide and model.empty == "attended":
            raise ValueError(
                f"{SECTION}.hide needs model.empty masked: an empty slot that is attended cannot "
                "be told from one that is hidden"
            )
        if self.again and not (model.dropout or model.attention_dropout):
            raise ValueError(
                f"{SECTION}.again needs dropout, without which a second reading is the same; set "
                "model.dropout above 0"
            )
