"""The gate between auxiliary losses and the weights that they share with the main one
(lm.runs.gating has the rules).

Both gradients are gathered over an update's segments, parts and ranks before they are compared, so
that the rule does not depend on how the work is divided. What reaches a weight is what has a graph
to it now: a compression function that only its reconstruction loss reaches is not shared, and
becomes so where the likelihood reaches it through a second segment.
"""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from lm.model.components import exact_device
from lm.model.transformer import CompressiveTransformer
from lm.runs.gating import SECTION, GateConfig, Products, let_in
from lm.training.dist import World
from lm.training.engine import Engine

ENDS = "ends"
"""Weights outside the layers."""


class Gate:
    """The auxiliary gradient of an update."""

    def __init__(self, config: GateConfig, model: CompressiveTransformer, world: World) -> None:
        """A gate before all weights of a model that learn."""
        self.config, self.world = config, world
        learning = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.names, self.parameters = [n for n, _ in learning], [p for _, p in learning]
        self.buffers: list[Tensor | None] = []
        self.reached: list[bool] = []
        self._main = False
        for index, parameter in enumerate(self.parameters):
            parameter.register_hook(lambda _, index=index: self._note(index))
        self.begin()

    def _note(self, index: int) -> None:
        """A gradient has come to a weight."""
        if self._main:
            self.reached[index] = True

    def begin(self) -> None:
        """Forget the gradients of the last update."""
        self.buffers = [None] * len(self.parameters)
        self.reached = [False] * len(self.parameters)
        self._main = False

    def check(self, names: Collection[str]) -> None:
        """ValueError for a loss that is not among the names of those that a run has or has had."""
        for name in self.config.losses:
            if name not in names:
                others = ", ".join(sorted({*names} - {"nats"})) or "none"
                raise ValueError(
                    f"{SECTION}.losses names {name}, which this run does not have; it has {others}"
                )

    def add(self, loss: Tensor, engine: Engine) -> None:
        """Gather the gradient of the auxiliary losses of a part of an update; the graph stays for
        the main ones. What is back-propagated from now on is theirs, until `begin`.
        """
        self._main = False
        if loss.requires_grad:
            found = engine.auxiliary_gradients(loss, self.parameters)
            for index, gradient in enumerate(found):
                if gradient is not None:
                    before, exact = self.buffers[index], _exact(gradient)
                    self.buffers[index] = exact if before is None else before.add_(exact)
        self._main = True

    @torch.no_grad()
    def apply(self) -> dict[str, float]:
        """Let the auxiliary gradient into the weights' gradients as far as the rule says.

        Collective; after the last back-propagation, when the main one has been summed over ranks.

        Returns:
            `gate_cosine` and `gate_passed`, the share of the auxiliary gradient that is let in,
            over the shared weights; with scope layer the means, and both by layer.
        """
        self._main = False
        mine = torch.tensor(
            [self.reached, [each is not None for each in self.buffers]], dtype=torch.float64
        )
        device = exact_device(self.world.device)
        main, auxiliary = self.world.sum(mine.to(device)).bool().tolist()
        groups: dict[str, list[int]] = {}
        for index, parameter in enumerate(self.parameters):
            if not auxiliary[index]:
                continue
            self._sum(index, parameter)
            if main[index]:
                groups.setdefault(self._group(self.names[index]), []).append(index)
            else:
                parameter.grad = self._buffer(index).to(parameter.dtype)
        return self._report({name: self._let_in(group) for name, group in groups.items()})

    def _group(self, name: str) -> str:
        """Weights that are let in alike."""
        if self.config.scope == "model":
            return ""
        return name.split(".")[1] if name.startswith("blocks.") else ENDS

    def _buffer(self, index: int) -> Tensor:
        buffer = self.buffers[index]
        assert buffer is not None
        return buffer

    def _sum(self, index: int, parameter: nn.Parameter) -> None:
        """The mean over ranks, as DeepSpeed makes of the main gradient."""
        buffer = self.buffers[index]
        if buffer is None:
            buffer = _exact(torch.zeros_like(parameter))
        self.buffers[index] = buffer
        if self.world.size > 1:
            torch.distributed.all_reduce(buffer)
            buffer /= self.world.size

    def _let_in(self, group: Iterable[int]) -> tuple[Products, float]:
        """The products over some weights, and the share that was let in."""
        pairs = []
        for index in group:
            gradient = self.parameters[index].grad
            assert gradient is not None
            pairs.append((self.parameters[index], _exact(gradient), self._buffer(index)))
        products = Products(
            *(
                torch.stack([(x * y).sum() for x, y in both]).sum().item()
                for both in (
                    [(g, a) for _, g, a in pairs],
                    [(g, g) for _, g, _ in pairs],
                    [(a, a) for _, _, a in pairs],
                )
            )
        )
        own, other = let_in(self.config.rule, products)
        for parameter, g, a in pairs:
            # A gradient that is let through alone stays what it is to the bit.
            if other or own != 1:
                parameter.grad = (own * g + other * a).to(parameter.dtype)
        return products, _share(products, own, other)

    def _report(self, found: Mapping[str, tuple[Products, float]]) -> dict[str, float]:
        """What is logged of the groups."""
        if not found:
            return {}
        values = {
            "gate_cosine": {name: products.cosine for name, (products, _) in found.items()},
            "gate_passed": {name: share for name, (_, share) in found.items()},
        }
        record = {name: sum(of.values()) / len(of) for name, of in values.items()}
        if self.config.scope == "layer":
            record |= {f"{name}/{g}": x for name, of in values.items() for g, x in of.items()}
        return record


def _exact(gradient: Tensor) -> Tensor:
    """In float32 at least."""
    return gradient if gradient.dtype == torch.float64 else gradient.float()


def _share(products: Products, own: float, other: float) -> float:
    """What share of the auxiliary gradient's size is let in."""
    # With project, a is let in but for its part along g.
    left = products.aa * other**2 + 2 * other * (own - 1) * products.ga
    left += (own - 1) ** 2 * products.gg
    return (max(left, 0.0) / products.aa) ** 0.5 if products.aa else 0.0
