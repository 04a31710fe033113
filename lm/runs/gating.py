"""Auxiliary losses that may not harm the main one: how far their gradient is let in, by how it
agrees with the main gradient (Du et al., arXiv 1812.02224). Needs no torch.

On weights that both reach, with main gradient g and auxiliary gradient a,

    sign     g + a where g . a >= 0, else g
    cosine   g + max(0, cos(g, a)) a
    project  g + a, without what of a goes against g (PCGrad, Yu et al., arXiv 2001.06782)
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from data.common.values import require_ranges

Rule = Literal["none", "sign", "cosine", "project"]
SECTION = "training.gate"


@dataclass(frozen=True)
class GateConfig:
    """Which losses are auxiliary, and how far their gradient is let in."""

    rule: Rule = "none"
    """none: all losses are added up. sign: where the gradients agree in sign, whole; cosine: as
    far as their cosine is above zero; project: without what goes against the main gradient."""
    losses: tuple[str, ...] = ()
    """Which are auxiliary, together, by their names in metrics.jsonl, such as agreement or worth.
    All others are the main one. Weights that the main one does not reach always learn from them."""
    scope: Literal["model", "layer"] = "model"
    """Whether all weights are let in alike, or each layer's, and those outside the layers, for
    themselves."""

    def __post_init__(self) -> None:
        require_ranges(self, SECTION)
        if self.rule == "none" and (self.losses or self.scope != "model"):
            name = "losses" if self.losses else "scope"
            raise ValueError(f"{SECTION}.{name} has no effect with {SECTION}.rule none")
        if self.rule != "none" and not self.losses:
            raise ValueError(
                f"{SECTION}.rule {self.rule} needs {SECTION}.losses, such as '[agreement]'"
            )
        if "nats" in self.losses or len({*self.losses}) < len(self.losses):
            raise ValueError(
                f"{SECTION}.losses must name auxiliary losses once each, and not nats, which is "
                f"the main one; not {list(self.losses)}"
            )

    def __bool__(self) -> bool:
        return self.rule != "none"


class Products(NamedTuple):
    """Products of the main gradient g and the auxiliary one a, over some weights."""

    ga: float
    gg: float
    aa: float

    @property
    def cosine(self) -> float:
        """Of the angle between them; 0 where one is zero."""
        size = math.sqrt(self.gg) * math.sqrt(self.aa)
        return self.ga / size if size else 0.0


def let_in(rule: Rule, products: Products) -> tuple[float, float]:
    """Factors x and y of what is learnt from, x g + y a.

    What is not finite is let in, so that the update is stopped and not quietly done without it.
    """
    if not all(map(math.isfinite, products)):
        return 1.0, 1.0
    if rule == "sign":
        return 1.0, float(products.ga >= 0)
    if rule == "cosine":
        return 1.0, max(0.0, products.cosine)
    assert rule == "project"
    against = min(0.0, products.ga) / products.gg if products.gg else 0.0
    return 1.0 - against, 1.0
