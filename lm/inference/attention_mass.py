"""Where attention goes: the share that falls on pinned slots (sinks), compressed memory, memory and
the segment.

The diagnostic of the paper's section 5.5 and figure 2, where each store is cut by age into six
buckets. Shapes: B lanes, S slots of [pinned ; compressed ; memory ; segment], L layers.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from lm.model.attention.base import Attended
from lm.model.components import exact_device
from lm.model.memory import MemoryState
from lm.model.transformer import CompressiveTransformer

STORES = ("pinned", "compressed", "memory", "segment")


class AttentionMass:
    """Context in which a model notes the attention that each slot receives.

        with AttentionMass(model) as mass:
            for ...:
                output = model(inputs, memory)
                mass.add(mass.full_lanes(memory))
        mass.by_store()["compressed"]  # a share for each layer

    What the model computes stays the same; attention may go a slower way meanwhile.
    """

    def __init__(self, model: CompressiveTransformer) -> None:
        self.model = model
        config, device = model.config, exact_device(model.embedding.weight.device)
        self.pinned = max(block.attention.pinned for block in model.layers)
        slots = self.pinned + config.slots + config.segment
        self.received_LS = torch.zeros(config.layers, slots, dtype=torch.float64, device=device)
        """Attention received, summed over lanes, heads and queries."""
        self.lanes = torch.zeros((), dtype=torch.float64, device=device)
        """Lanes of segments counted."""
        self._latest: dict[int, Tensor] = {}

    def __enter__(self) -> Self:
        attentions = [block.attention for block in self.model.layers]
        self._before = [attention.counts_attention for attention in attentions]
        self._hooks = []
        for layer, attention in enumerate(attentions):
            attention.counts_attention = attention.counts_every_key = True
            self._hooks.append(attention.register_forward_hook(self._noting(layer)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for block, counts, hook in zip(self.model.layers, self._before, self._hooks, strict=True):
            block.attention.counts_attention = counts
            block.attention.counts_every_key = False
            hook.remove()

    def _noting(self, layer: int) -> Callable[[nn.Module, object, Attended], None]:
        def note(_: nn.Module, __: object, attended: Attended) -> None:
            assert attended.received_BS is not None
            self._latest[layer] = attended.received_BS.detach()

        return note

    def full_lanes(self, memory: MemoryState) -> Tensor:
        """[B] bool: the lanes that have every slot of both memories to attend to."""
        return self.model.live(memory).all(dim=1)

    def add(self, lanes_B: Tensor) -> None:
        """Count the segment that the model has just read, in some of its lanes ([B] bool)."""
        for layer, received_BS in self._latest.items():
            total_S = received_BS[lanes_B].to(self.lanes.device).double().sum(dim=0)
            # A layer without memory has only the segment.
            self.received_LS[layer, -len(total_S) :] += total_S
        self.lanes += lanes_B.sum().to(self.lanes.device)

    def reduce(self, total: Callable[[Tensor], Tensor]) -> None:
        """Make the counts those of all ranks; `total` sums a float64 tensor over them."""
        self.received_LS, self.lanes = total(self.received_LS), total(self.lanes)

    @property
    def shares_LS(self) -> Tensor:
        """Share of each layer's attention that each slot received, oldest slot first; [L, S].

        Raises:
            ValueError: nothing was counted.
        """
        if not self.lanes:
            raise ValueError(
                "no segment was read with both memories full; read more text or use shorter "
                "memories"
            )
        config = self.model.config
        return (self.received_LS / (self.lanes * config.heads * config.segment)).cpu()

    def by_age(self, buckets: int = 6) -> dict[str, Tensor]:
        """For each store the share of each of its buckets, oldest first; [L, buckets].

        A store with fewer slots than buckets has a bucket a slot, one without slots none.
        """
        config = self.model.config
        sizes = (self.pinned, config.compressed, config.memory, config.segment)
        stores = dict(zip(STORES, self.shares_LS.split(sizes, dim=1), strict=True))
        if not self.pinned:
            del stores["pinned"]
        return {name: _bucketed(part, min(buckets, part.shape[1])) for name, part in stores.items()}

    def by_store(self) -> dict[str, Tensor]:
        """Share of each store; [L]. A layer's shares sum to 1."""
        return {name: shares.sum(dim=1) for name, shares in self.by_age().items()}


def _bucketed(shares_LS: Tensor, buckets: int) -> Tensor:
    """Sums over equal runs of slots, as equal as they can be."""
    slots = shares_LS.shape[1]
    bucket_S = torch.arange(slots) * buckets // max(slots, 1)
    return shares_LS.new_zeros(len(shares_LS), buckets).index_add_(1, bucket_S, shares_LS)
