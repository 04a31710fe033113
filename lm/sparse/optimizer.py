"""AdamW for parameters whose powers are the weights (Powerpropagation, section on optimisers)."""

from typing import Any

import torch

from lm.sparse.config import PowerConfig
from lm.sparse.powerprop import slope


class PowerAdamW(torch.optim.AdamW):
    """AdamW whose groups with a `power` move the weights that their parameters stand for.

    Everything it does is done to each element alone, so that it is the same on the flat parts of
    parameters that DeepSpeed's stages hand to an optimiser as on whole ones.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every parameter.

        With lr the rate, d the decay and u AdamW's normalised gradient, p becomes
        s p - lr u f, where f is the slope with power.factor after and 1 otherwise, and s shrinks
        the weight (power.decay weight) or p itself to 1 - lr d of what it was.
        """
        powered = [group for group in self.param_groups if "power" in group]
        before = []
        for group in powered:
            pairs = [(p, p.clone()) for p in group["params"] if p.grad is not None]
            before.append(pairs)
            for parameter, _ in pairs:
                # From zero the step leaves the update alone, without rounding.
                parameter.zero_()
        result = super().step(closure)
        for group, pairs in zip(powered, before, strict=True):
            power: PowerConfig = group["power"]
            kept = 1 - group["lr"] * group["power_decay"]
            if power.decay == "weight":
                kept **= 1 / power.alpha
            for parameter, old in pairs:
                if power.factor == "after":
                    parameter.mul_(slope(old, power.alpha))
                parameter.add_(old.mul_(kept))
        return result


def power_group(group: dict[str, Any], power: PowerConfig) -> dict[str, Any]:
    """A parameter group of AdamW as one of PowerAdamW whose parameters have a power."""
    group = {**group, "weight_decay": 0.0, "power_decay": group["weight_decay"], "power": power}
    return group if power.lr is None else {**group, "lr": power.lr, "peak_lr": power.lr}
